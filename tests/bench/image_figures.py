"""What the stages' images weigh, and how long they take to start and to work on the smallest real batch."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from figures import Figure, Scale, seconds

from containers import container_of, docker_arguments
from runners import ContainerRunner, docker, inspect, mlflow_container, network, postgres_container
from support import DONE, NOTHING_TO_DO, ROOT, STAGES, Delivery, make_database, make_warehouse

# Megabytes that a stage's image may add to heart/base, and all six together to the public image they are made from.
MOST = {"extract": 60, "load": 60, "transform": 170, "train": 350, "evaluate": 350, "predict": 350}
MOST_OF_ALL = 600
# Seconds that --help may take beyond an empty Python in the same base.
MOST_OF_HELP = 0.35
SHARED = ("train", "evaluate", "predict")


def sizes(_: Scale) -> Iterator[Figure]:
    """Bytes of the images on top of their base."""
    size = {name: inspect(image)["Size"] / 1e6 for name in (*STAGES, "base", "ml") for image in (f"heart/{name}:dev",)}
    for name in STAGES:
        yield Figure(f"size: {name}", size[name] - size["base"], "MB", "on top of heart/base", target=MOST[name])
    python = inspect("heart-base/python:dev")["Size"] / 1e6
    own = sum(size[name] - size["ml" if name in SHARED else "base"] for name in STAGES)
    together = size["base"] - python + size["ml"] - size["base"] + own
    yield Figure("size: all six, shared layers once", together, "MB", "on top of the Python image", target=MOST_OF_ALL)


def starts(scale: Scale) -> Iterator[Figure]:
    """Seconds from docker run to the end of --help and of a batch of 303 records."""
    times = scale.times_of_short
    nothing = replace(container_of(STAGES["extract"]), networks=(), volumes={}, environment={})
    hardened = docker_arguments(nothing)
    empty = seconds(lambda: docker("run", "--rm", *hardened, "--entrypoint=python", "heart/base:dev", "-c", "pass"), times)
    yield Figure("start: python -c pass", empty, "s", "heart/base")
    stages = ["extract"] if scale.quick else list(STAGES)
    for name in stages:
        taken = seconds(lambda name=name: docker("run", "--rm", *hardened, f"heart/{name}:dev", "--help"), times)
        yield Figure(f"start: {name} --help", taken, "s", "python -c pass", difference=taken - empty, target=MOST_OF_HELP)
    with network() as name, tempfile.TemporaryDirectory() as folder, postgres_container(name, Path(folder)) as (postgres, there):
        runner = ContainerRunner(name, there)
        with mlflow_container(runner, postgres, make_database(postgres)["PGDATABASE"]) as address:
            yield from batch(runner, make_warehouse(postgres) | {"MLFLOW_TRACKING_URI": address}, Path(folder), stages, times)


def batch(runner: ContainerRunner, reach: dict[str, str], folder: Path, stages: list[str], times: int) -> Iterator[Figure]:
    """Run each stage on Cleveland's records, every time as if for the first time."""
    delivery = Delivery(folder / "batch", variables=reach, runner=runner)
    delivery.folder.mkdir()
    delivery.data.symlink_to(ROOT / "data")
    for name in stages:
        what = "cleveland" if STAGES[name].per_batch else None
        expect = NOTHING_TO_DO if name == "predict" else DONE  # everyone there has a diagnosis
        inside: list[float] = []

        def work(name: str = name, what: str | None = what, expect: int = expect, inside: list[float] = inside) -> None:
            outcome = delivery.stage(name, what, "--force", expect=expect)
            inside.append((outcome.result or {})["seconds"])

        taken = seconds(work, 1 if name in ("train", "evaluate") else times)
        own = sorted(inside)[len(inside) // 2]
        yield Figure(f"303 records: {name}", taken, "s", "the stage's own work", difference=taken - own)

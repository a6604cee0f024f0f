"""What Airflow and Docker add to a stage, in a full run of all six on the smallest real batch."""

import itertools
import re
import statistics
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from figures import Figure, Scale

import servers
from dagbag import read_dags
from runners import docker
from stacks import Stack, running_stack
from support import DONE, NOTHING_TO_DO, ROOT, STAGES, Delivery, make_database, make_warehouse, mlflow_on

# Seconds that a stage may take longer than as a bare process, from the end of the one before it.
MOST_OF_STAGE = 1.0
# Seconds that a DAG file may take to be read, and megabytes that the whole system may take.
MOST_OF_FILE = 0.3
MOST_MEMORY = 6000


def parsing(scale: Scale) -> Iterator[Figure]:
    """Seconds that Airflow takes to read a DAG file, after its own imports."""
    readings = [read_dags()["seconds"] for _ in range(scale.times_of_short)]
    for file in sorted(readings[0]):
        taken = statistics.median(reading[file] for reading in readings)
        yield Figure(f"reading {file.strip('/')}", taken, "s", target=MOST_OF_FILE)


def overhead(scale: Scale) -> Iterator[Figure]:
    """Seconds that Airflow and Docker add to a stage, warm."""
    if scale.quick:
        return
    starts = process_starts(scale.times_of_short)
    # What a batch that has drifted sets off is the same work with one repeat.
    with running_stack("heart-bench", repeats=1) as stack:
        stack.make("pipeline", "BATCH=cleveland")
        yield Figure("memory: the whole system, idle", memory(stack), "MB", "its limits", target=MOST_MEMORY)
        runs = [full_run(stack, scale.repeats) for _ in range(scale.times)]
        yield Figure(
            "memory: the whole system, most in a run of four batches", most_memory(stack), "MB", "its limits", target=MOST_MEMORY
        )
    whole, work, etl = (statistics.median(values) for values in zip(*runs, strict=True))
    bare = work + sum(starts.values())
    yield Figure("full run of six stages, 303 records, warm", whole, "s", "as bare processes", ratio=whole / bare)
    yield Figure("a stage beyond its own work: Airflow and Docker", etl, "s", "nothing")
    yield Figure("added by Airflow and Docker, a stage", (whole - bare) / len(STAGES), "s", "nothing", target=MOST_OF_STAGE)


def memory(stack: Stack) -> float:
    """Return the megabytes that the system's services and stages take now, as docker stats counts them: without file caches."""
    project = stack.environment["COMPOSE_PROJECT_NAME"]
    labels = ("com.docker.compose.project", "heart.project")
    there = [docker("ps", "--quiet", "--filter", f"label={label}={project}").split() for label in labels]
    # One that ends in between is no error.
    command = ["docker", "stats", "--no-stream", "--format={{.MemUsage}}", *itertools.chain(*there)]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    units = {"B": 1e-6, "KiB": 2**10 / 1e6, "MiB": 2**20 / 1e6, "GiB": 2**30 / 1e6}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"^([\d.]+)([KMG]?i?B) / ", shown, flags=re.MULTILINE))


def most_memory(stack: Stack) -> float:
    """Return the most megabytes that the system was seen to take while all batches went through all stages anew."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(stack.make, "pipeline", "FORCE=1")
        seen = []
        while not run.done():
            seen.append(memory(stack))
        assert run.result().returncode == 0, run.result().stderr
    return max(seen)


def process_starts(times: int) -> dict[str, float]:
    """Return the median seconds that Python's start and the imports take each stage as a bare process, beside its own work."""
    taken: dict[str, list[float]] = {name: [] for name in STAGES}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "STATE", Path(folder))
        with servers.postgres() as postgres, mlflow_on(make_database(postgres), Path(folder) / "mlflow") as address:
            # How long a stage works is no matter here, only what comes before and after.
            variables = make_warehouse(postgres) | {"MLFLOW_TRACKING_URI": address, "HEART_REPEATS": 1}
            delivery = Delivery(Path(folder) / "batch", variables=variables)
            delivery.folder.mkdir()
            delivery.data.symlink_to(ROOT / "data")
            for name, stage in STAGES.items():
                for _ in range(1 + (times if name not in ("train", "evaluate") else 2)):
                    started = time.perf_counter()
                    batch = "cleveland" if stage.per_batch else None
                    outcome = delivery.stage(name, batch, "--force", expect=(DONE, NOTHING_TO_DO))
                    taken[name].append(time.perf_counter() - started - (outcome.result or {})["seconds"])
    # The first of each wrote the bytecode of its packages.
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def full_run(stack: Stack, repeats: int) -> tuple[float, float, float]:
    """Run everything anew; return three seconds.

    All tasks' with the waits between them; the stages' own; and what extract, transform and load took beyond their own, a stage.
    """
    done = stack.make("pipeline", "BATCH=cleveland", "FORCE=1", f"REPEATS={repeats}")
    assert done.returncode == 0, done.stdout + done.stderr
    whole, work, stages = {}, {}, {}
    for dag in ("etl_dag", "ml_dag"):
        (run,) = stack.airflow(f"dags/{dag}/dagRuns", order_by="-run_after", limit=1)["dag_runs"]
        path = f"dags/{dag}/dagRuns/{urllib.parse.quote(run['dag_run_id'])}/taskInstances"
        tasks = [t for t in stack.airflow(path, limit=100)["task_instances"] if t["task_id"].rsplit(".", 1)[-1] in STAGES]
        whole[dag] = max(moment(t["end_date"]) for t in tasks) - min(moment(t["start_date"]) for t in tasks)
        work[dag] = sum(own_seconds(stack, path, task) for task in tasks)
        stages[dag] = len(tasks)
    return sum(whole.values()), sum(work.values()), (whole["etl_dag"] - work["etl_dag"]) / stages["etl_dag"]


def own_seconds(stack: Stack, path: str, task: dict[str, Any]) -> float:
    """Return how long a stage worked, by its own clock."""
    entry = f"{path}/{task['task_id']}/xcomEntries/return_value"
    return stack.airflow(entry, map_index=task["map_index"], deserialize="true")["value"]["seconds"]


def moment(text: str) -> float:
    """Return a time of Airflow's in seconds."""
    return datetime.fromisoformat(text).timestamp()

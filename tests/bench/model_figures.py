"""How long training and scoring many people take, beside scikit-learn alone on a frame in memory."""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace

from etl_figures import name_of
from figures import Figure, Scale, seconds
from lab import Lab, laboratory, most_memory, timed

import servers
from runners import ProcessRunner, mlflow_container
from support import ENVIRONMENTS, ROOT, Delivery, Warehouse, draw, make_database

# Megabytes that predict takes for ten times as many people, beside those for fewer.
MEMORY_GROWTH = 1.1


def models(scale: Scale) -> Iterator[Figure]:
    """Seconds and megabytes that training on and scoring many people take."""
    with laboratory() as lab, mlflow_container(lab.runner, lab.postgres, make_database(lab.postgres)["PGDATABASE"]) as address:
        few, many = with_champion(lab, scale.people, MLFLOW_TRACKING_URI=address, HEART_REPEATS=scale.repeats)
        yield from training(scale, many)
        yield from scoring(scale, few, many)


def with_champion(lab: Lab, people: int, **variables: object) -> tuple[Delivery, Delivery]:
    """Return two deliveries into one warehouse, of which the second has ten times the people of the first.

    They are loaded, beside Cleveland's, from whom a champion was trained.
    """
    folder = lab.folder / "people"
    draw(folder / "bench", people)
    draw(folder / "few", people // 10, first=people)
    shutil.copytree(ROOT / "data/cleveland", folder / "cleveland")
    delivery = lab.delivery(folder, **variables)
    for batch in ("cleveland", "few", "bench"):
        delivery.etl(batch)
    for stage in ("train", "evaluate"):
        delivery.stage(stage, HEART_TRAINING_BATCH="cleveland")
    few, many = (
        replace(delivery, variables=delivery.variables | {"HEART_TRAINING_BATCH": batch, "HEART_SCORED_BATCH": batch})
        for batch in ("few", "bench")
    )
    return few, many


def training(scale: Scale, many: Delivery) -> Iterator[Figure]:
    """Compare train with one fit of gradient boosting."""
    what, alone = name_of(scale.people), in_memory("fit", many, scale.times)
    train = statistics.median(timed(many, "train", None, "--force") for _ in range(scale.times))
    yield Figure(f"{what}: train", train, "s", "HistGradientBoostingClassifier.fit", ratio=train / alone["seconds"], target=1.5)
    most = most_memory(as_process(many), "train", None, "--force")
    yield Figure(f"{what}: train, most memory", most, "MB", "the frame", ratio=most / alone["frame_mb"], target=2)
    yield Figure("memory: train's libraries, imported", alone["imported_mb"], "MB", "the frame",
                 ratio=alone["imported_mb"] / alone["frame_mb"])  # fmt: skip


def scoring(scale: Scale, few: Delivery, many: Delivery) -> Iterator[Figure]:
    """Compare predict with predict_proba, with a copy of what it writes, and its memory with that for a tenth of the people."""
    what, alone = name_of(scale.people), in_memory("predict", many, scale.times)
    taken = []
    for _ in range(scale.times):
        query(many, "TRUNCATE heart_analysis.heart_prediction")
        taken.append(timed(many, "predict", None))
    copied = copy_predictions(many)
    predict = statistics.median(taken)
    yield Figure(f"{what}: predict", predict, "s", "predict_proba", ratio=predict / alone["seconds"], target=2)
    yield Figure(f"{what}: predict", predict, "s", "COPY of the ready predictions", ratio=predict / copied)
    query(many, "TRUNCATE heart_analysis.heart_prediction")
    least, most = (most_memory(as_process(delivery), "predict", None) for delivery in (few, many))
    yield Figure(f"{what}: predict, most memory", most, "MB", name_of(scale.people // 10), ratio=most / least,
                 target=MEMORY_GROWTH)  # fmt: skip


def as_process(delivery: Delivery) -> Delivery:
    """Return the same delivery for stages that run as processes."""
    return replace(delivery, runner=ProcessRunner(), run="as-process")


def query(delivery: Delivery, statement: str) -> None:
    """Send a statement to a delivery's warehouse."""
    Warehouse(reach_of(delivery)).query(statement)


def reach_of(delivery: Delivery) -> dict[str, str]:
    """Return the variables that lead to a delivery's warehouse and its MLflow server."""
    return {name: str(value) for name, value in delivery.variables.items()}


def copy_predictions(delivery: Delivery) -> float:
    """Copy the predictions out and in again; return the seconds that in took."""
    with (
        tempfile.TemporaryFile() as file,
        contextlib.closing(servers.connect(reach_of(delivery))) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT string_agg(column_name, ', ') FROM information_schema.columns WHERE table_name = "
                       "'heart_prediction' AND column_name <> 'prediction_id'")  # fmt: skip
        ((columns,),) = cursor.fetchall()
        cursor.copy_expert(f"COPY heart_analysis.heart_prediction ({columns}) TO STDOUT", file)
        cursor.execute("TRUNCATE heart_analysis.heart_prediction")
        file.seek(0)
        return seconds(lambda: cursor.copy_expert(f"COPY heart_analysis.heart_prediction ({columns}) FROM STDIN", file), 1)


def in_memory(what: str, delivery: Delivery, times: int) -> dict[str, float]:
    """Fit or score with scikit-learn alone on the delivery's people in memory; see in_memory.py."""
    python = ENVIRONMENTS / ("train" if what == "fit" else "predict") / "bin/python"
    command = [python, ROOT / "tests/bench/in_memory.py", what, str(times)]
    path = {"PYTHONPATH": f"{ROOT / 'images/base'}:{ROOT / 'images/ml'}"}
    return json.loads(subprocess.check_output(list(map(str, command)), env=os.environ | reach_of(delivery) | path, text=True))

"""What Airflow and Docker add to a stage's own work, in a full run of all six on the smallest real batch."""

import statistics
import urllib.parse
from collections.abc import Iterator
from datetime import datetime

from figures import Figure

from stacks import Stack, running_stack
from support import STAGES

# Seconds that a stage may take longer than its own work, from the end of the one before it.
MOST_OF_STAGE = 1.0


def overhead(times: int, quick: bool) -> Iterator[Figure]:
    """Seconds that Airflow and Docker add to a stage, warm."""
    if quick:
        return
    with running_stack("heart-bench") as stack:
        stack.make("pipeline", "BATCH=cleveland")
        runs = [added(stack) for _ in range(max(3, times // 2))]
    whole, own = (statistics.median(values) for values in zip(*runs, strict=True))
    yield Figure("full run of six stages, 303 records, warm", whole, "s", "the stages' own work", ratio=whole / own)
    yield Figure("added by Airflow and Docker, a stage", (whole - own) / len(STAGES), "s", "nothing", target=MOST_OF_STAGE)


def added(stack: Stack) -> tuple[float, float]:
    """Run everything anew; return the seconds from the first task's start to the last one's end, and the stages' own."""
    done = stack.make("pipeline", "BATCH=cleveland", "FORCE=1")
    assert done.returncode == 0, done.stdout + done.stderr
    tasks, own = [], 0.0
    for dag in ("etl_dag", "ml_dag"):
        (run,) = stack.airflow(f"dags/{dag}/dagRuns", order_by="-run_after", limit=1)["dag_runs"]
        path = f"dags/{dag}/dagRuns/{urllib.parse.quote(run['dag_run_id'])}/taskInstances"
        tasks += [t for t in stack.airflow(path, limit=100)["task_instances"] if t["task_id"].rsplit(".", 1)[-1] in STAGES]
        for task in tasks:
            if task["dag_id"] != dag:
                continue
            entry = f"{path}/{task['task_id']}/xcomEntries/return_value"
            own += stack.airflow(entry, map_index=task["map_index"], deserialize="true")["value"]["seconds"]
    waits = [moment(later["start_date"]) - moment(before["end_date"]) for before, later in
             zip(by_start(tasks), by_start(tasks)[1:], strict=False) if before["dag_id"] == later["dag_id"]]  # fmt: skip
    return sum(task["duration"] for task in tasks) + sum(waits), own


def by_start(tasks: list[dict]) -> list[dict]:
    """Return tasks in the order in which they began."""
    return sorted(tasks, key=lambda task: task["start_date"])


def moment(text: str) -> float:
    """Return a time of Airflow's in seconds."""
    return datetime.fromisoformat(text).timestamp()

"""What fails around a run of the whole system, and that nothing is lost or doubled by it.

After each fault the warehouse, the registry and the predictions are those of a run that nothing disturbed: contents are
compared, not counts.
"""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runners import docker, inspect, wait_until
from stacks import Run, Stack, content, load_undisturbed, locked, waits
from support import ROOT, STAGES, ask_mlflow

pytestmark = pytest.mark.docker
CHAMPION = {"name": "heart-disease", "alias": "champion"}


class Watch:
    """Sees every container of a stage start, and pauses those that are to be held."""

    def __init__(self, project: str, hold: tuple[str, ...]) -> None:
        self.hold = set(hold)
        self.held: dict[str, str] = {}
        self.started: list[tuple[str, str]] = []
        command = ["docker", "events", "--filter=type=container", "--filter=event=start",
                   f"--filter=label=heart.project={project}", "--format={{json .}}"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for line in self.process.stdout or ():
            actor = json.loads(line)["Actor"]
            stage = actor["Attributes"]["heart.stage"]
            self.started.append((actor["Attributes"]["heart.run"], stage))
            if stage in self.hold:
                self.hold.discard(stage)
                # On a busy machine the kernel may not freeze a container at the first try (opencontainers/runc#2791, #4388).
                wait_until(lambda container=actor["ID"]: pause(container))
                self.held[stage] = actor["ID"]

    def release(self, stage: str) -> None:
        """Let a held container go on."""
        docker("unpause", self.held[stage])


def pause(container: str) -> bool:
    """Pause a container; return whether it could be."""
    return subprocess.run(["docker", "pause", container], capture_output=True).returncode == 0


@contextmanager
def watch(stack: Stack, *hold: str) -> Iterator[Watch]:
    """Watch the stages of the stack; never leave one paused."""
    watching = Watch(stack.project, hold)
    try:
        yield watching
    finally:
        watching.process.kill()
        for container in watching.held.values():
            subprocess.run(["docker", "unpause", container], capture_output=True)


def says(stack: Stack, stage: str, message: str) -> bool:
    """Return whether a stage that is at work has said something."""
    mine = [f"--filter=label=heart.{name}={value}" for name, value in (("project", stack.project), ("stage", stage))]
    logs = [subprocess.run(["docker", "logs", c], capture_output=True, text=True) for c in docker("ps", "--quiet", *mine).split()]
    return any(message in log.stderr for log in logs)


def deliver(stack: Stack, batch: str, first: int, people: int) -> None:
    """Deliver people of Cleveland under other ids, from a line on; the first three are not diagnosed."""
    folder = Path(stack.environment["HEART_DATA"]) / batch
    folder.mkdir()
    for name in ("account_raw.csv", "heart_raw.csv"):
        header, *lines = (ROOT / "data" / "cleveland" / name).read_text().splitlines()
        mine = [f"{batch.upper()}-{line}" for line in lines[first : first + people]]
        if name == "heart_raw.csv":
            mine[:3] = [line.rpartition(";")[0] + ";?" for line in mine[:3]]
        (folder / name).write_text("\n".join([header, *mine]) + "\n")


def of_batch(batch: str) -> str:
    """Return the condition on an account_id that is of a batch."""
    return f"account_id LIKE '{batch.upper()}-%'"


@pytest.fixture
def undisturbed(stack: Stack, tmp_path: Path, postgres: dict[str, str]) -> Callable[[str], dict[str, list[str]]]:
    """Give what the warehouse holds of a batch that was loaded with nothing in the way."""
    return lambda batch: load_undisturbed(tmp_path, Path(stack.environment["HEART_DATA"]), postgres, batch)


def predictions(stack: Stack, batch: str) -> list[list[str]]:
    """Return the predictions for a batch, without what differs from run to run."""
    columns = "account_id, probability, low, high, factors, note, model_version, missing"
    return stack.query(f"SELECT {columns} FROM heart_analysis.heart_prediction WHERE {of_batch(batch)} ORDER BY 1")


def scores_of(stack: Stack, run: str) -> dict[str, float]:
    """Return the scores that MLflow has of a training."""
    metrics = ask_mlflow(stack.mlflow, "runs/get", run_id=run)["run"]["data"]["metrics"]
    return {m["key"]: m["value"] for m in metrics if "seconds" not in m["key"] and not m["key"].startswith("system/")}


def assert_nothing_lost_or_doubled(stack: Stack, batch: str, expected: dict[str, list[str]], before: int) -> None:
    """Compare the warehouse, the registry and the predictions with those of an undisturbed run.

    before: how many model versions there were before a training that was disturbed.
    """
    assert content(stack.query, batch) == expected and len(expected["heart_fact"]) > 0
    loads = stack.query(f"SELECT rows_in, rows_loaded FROM heart_analysis.load_batch WHERE batch = '{batch}'")
    assert loads == [[str(len(expected["heart_fact"]))] * 2], "loaded once"
    # The same data, seed and image: the same model, registered once, decided on once.
    versions = stack.versions()
    assert len(versions) == before + 1
    newest, oldest = (scores_of(stack, version["run_id"]) for version in (versions[0], versions[-1]))
    common = newest.keys() & oldest.keys()
    assert {name: newest[name] for name in common} == {name: oldest[name] for name in common} and len(common) > 5
    decided = "SELECT count(*) FROM heart_analysis.promotion GROUP BY decided_by, candidate_version ORDER BY 1 DESC LIMIT 1"
    assert stack.query(decided) == [["1"]], "no run decides twice"
    champion = ask_mlflow(stack.mlflow, "registered-models/alias", **CHAMPION)["model_version"]
    recorded = "SELECT version FROM heart_analysis.champion_history ORDER BY since DESC LIMIT 1"
    assert stack.query(recorded) == [[champion["version"]]]
    # What predict writes when nothing is in its way.
    found = predictions(stack, batch)
    assert len(found) == 3
    stack.query(f"DELETE FROM heart_analysis.heart_prediction WHERE {of_batch(batch)}")
    again = stack.make("run/predict", "ARGS=--force --run undisturbed")
    assert again.returncode == 0, again.stderr
    assert predictions(stack, batch) == found
    assert stack.containers() == []


def following(stack: Stack, etl: Run) -> Run:
    """Return the run of ml_dag that the asset of a run of etl_dag set off, once it is there."""
    found: list[Run] = []

    def there() -> bool:
        listed = stack.airflow("dags/ml_dag/dagRuns", order_by="-run_after", limit=10)["dag_runs"]
        for run in (Run("ml_dag", told["dag_run_id"]) for told in listed):
            events = stack.airflow(f"{run.path}/upstreamAssetEvents")["asset_events"]
            if any(event["source_run_id"] == etl.id for event in events):
                found.append(run)
        return bool(found)

    wait_until(there)
    return found[0]


def test_a_worker_killed_in_the_middle_of_each_stage_is_not_missed(stack, first, undisturbed):
    before = len(stack.versions())
    deliver(stack, "brno", 0, 60)
    with watch(stack, *STAGES) as watching:
        models = stack.trigger("ml_dag", force=True)
        etl = stack.trigger("etl_dag", batch=["brno"])
        # Two stages at a time: one of each DAG.
        for pair in (("extract", "train"), ("transform", "evaluate"), ("load", "predict")):
            wait_until(lambda pair=pair: set(pair) <= set(watching.held))
            stack.kill("airflow-worker")
            assert all(inspect(watching.held[stage])["State"]["Running"] for stage in pair), "a stage outlives the worker"
            places = [f"{etl.path}/taskInstances/deliver.{pair[0]}/0", f"{models.path}/taskInstances/{pair[1]}"]

            def taken_over(places: list[str] = places) -> bool:
                tasks = [stack.airflow(place) for place in places]
                return [(task["try_number"], task["state"]) for task in tasks] == [(2, "running")] * 2

            wait_until(taken_over, 1)
            for stage in pair:
                watching.release(stage)
        assert stack.wait_for_run(etl) == stack.wait_for_run(models) == "success"
        assert stack.wait_for_run(following(stack, etl)) == "success"
    started = [stage for run, stage in watching.started if run in (etl.id, models.id)]
    assert sorted(started) == sorted(STAGES), "no stage was started a second time"
    assert_nothing_lost_or_doubled(stack, "brno", undisturbed("brno"), before)


def test_a_run_survives_the_end_of_everything_that_it_needs(stack, first, undisturbed):
    """PostgreSQL dies in load, in train's reading and in predict, MLflow and the broker in train; in evaluate all restart."""
    before = len(stack.versions())
    deliver(stack, "plzen", 60, 60)
    with locked(stack, "heart_fact"):
        etl = stack.trigger("etl_dag", batch=["plzen"])
        models = stack.trigger("ml_dag", force=True)
        wait_until(lambda: waits(stack, "load") and waits(stack, "train"), 1)
        stack.kill("postgres")
    assert stack.wait_for_run(etl) == "success"
    wait_until(lambda: says(stack, "train", "judged"))
    stack.kill("mlflow")
    stack.kill("valkey")
    wait_until(lambda: says(stack, "evaluate", "judged"))
    stack.compose("restart", "--timeout", "5")
    wait_until(lambda: set(stack.states().values()) == {"done", "healthy"}, 1)
    with locked(stack, "heart_prediction"):
        wait_until(lambda: waits(stack, "predict"), 1)
        stack.kill("postgres")
    assert stack.wait_for_run(models) == "success"
    assert stack.wait_for_run(following(stack, etl)) == "success"
    tries = {task: stack.airflow(f"{models.path}/taskInstances/{task}")["try_number"] for task in ("train", "predict")}
    assert all(number > 1 for number in tries.values()), tries
    assert_nothing_lost_or_doubled(stack, "plzen", undisturbed("plzen"), before)


def test_two_full_runs_at_once_load_and_train_once(stack, first):
    deliver(stack, "ostrava", 120, 30)
    before = stack.versions()
    runs = [stack.trigger(dag) for dag in ("etl_dag", "ml_dag", "etl_dag")]
    assert [stack.wait_for_run(run) for run in runs] == ["success"] * 3
    stack.rest()
    assert stack.query("SELECT rows_in, rows_loaded FROM heart_analysis.load_batch WHERE batch = 'ostrava'") == [["30", "30"]]
    assert stack.versions() == before, "nothing new to train on"


def test_a_run_cancelled_while_it_decides_works_no_longer_and_leaves_no_half_promoted_model(stack, first):
    decisions = stack.query("SELECT count(*) FROM heart_analysis.promotion")
    champion = ask_mlflow(stack.mlflow, "registered-models/alias", **CHAMPION)
    run = stack.trigger("ml_dag", force=True)
    wait_until(lambda: says(stack, "evaluate", "judged"))
    stack.airflow(run.path, {"state": "failed"}, method="PATCH")
    # Airflow gives a task 10 s to end its container and remove it. A busy engine takes longer: housekeeping removes it then.
    mine = f"--filter=label=heart.project={stack.project}"
    wait_until(lambda: docker("ps", "--quiet", mine) == "")
    assert stack.query("SELECT count(*) FROM heart_analysis.promotion") == decisions
    assert ask_mlflow(stack.mlflow, "registered-models/alias", **CHAMPION) == champion

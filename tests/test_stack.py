"""The whole system, as people bring it up and look at it: `make up`, `make pipeline`, Airflow, MLflow, pgAdmin, `make down`."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from browser import Browser, browser
from runners import docker, inspect, wait_until
from stacks import Stack
from support import FEATURES, ROOT, STAGES, ask_mlflow

pytestmark = pytest.mark.docker
SCREENSHOTS = ROOT / ".run" / "screenshots"


@pytest.fixture(scope="module")
def window(stack: Stack) -> Iterator[Browser]:
    """Give a real browser."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with browser(SCREENSHOTS) as window:
        yield window


def test_everything_is_healthy_within_its_limits_and_only_on_this_machine(stack):
    states = stack.states()
    once = {"secrets", "databases", "mlflow-init", "airflow-init"}
    assert {name for name, state in states.items() if state == "done"} == once
    assert {state for name, state in states.items() if name not in once} == {"healthy"}
    services = [json.loads(line) for line in stack.compose("ps", "--format", "json").splitlines()]
    limits = 0
    for service in services:
        found = inspect(service["ID"])
        limits += found["HostConfig"]["Memory"]
        assert found["HostConfig"]["Memory"], service["Service"]
        assert all(b["HostIp"] == "127.0.0.1" for bindings in found["HostConfig"]["PortBindings"].values() for b in bindings)
    assert limits <= 6 * 2**30


def test_the_credentials_are_readable_by_nobody_else_and_show_nowhere(stack):
    path = ROOT / f".credentials-{stack.project}"
    assert path.stat().st_mode & 0o777 == 0o600
    assert subprocess.run(["git", "check-ignore", "-q", path.name], cwd=ROOT).returncode == 0
    shown = stack.compose("config") + stack.compose("logs")
    for container in docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={stack.project}").split():
        shown += json.dumps(inspect(container))
    for name, value in stack.credentials.items():
        assert len(value) >= 24 and value not in shown, name


def test_all_records_are_in_the_warehouse_and_the_champion_in_the_registry(stack, first):
    assert {b["batch"]: (b["in"], b["loaded"], b["quarantined"], b["duplicate"]) for b in first["batches"]} == {
        "cleveland": (303, 303, 0, 0),
        "hungary": (294, 294, 0, 0),
        "switzerland": (123, 123, 0, 0),
        "va_long_beach": (200, 200, 0, 0),
    }
    assert stack.query("SELECT count(*) FROM heart_analysis.heart_fact") == [["920"]]
    mlflow = stack.mlflow
    version = ask_mlflow(mlflow, "registered-models/alias", name="heart-disease", alias="champion")["model_version"]
    assert first["model"]["version"] == int(version["version"]) == 1 and first["model"]["decision"] == "promoted"
    run = ask_mlflow(mlflow, "runs/get", run_id=version["run_id"])["run"]
    assert [d["dataset"]["name"] for d in run["inputs"]["dataset_inputs"]] == ["cleveland"]
    files = {f["path"] for f in ask_mlflow(mlflow, "artifacts/list", run_id=version["run_id"])["files"]}
    assert {"out_of_fold.csv", "report.html"} <= files
    assert any(name.endswith(".png") or name.endswith(".svg") or name == "plots" for name in files), files
    image = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}["heart.image"]
    assert image == inspect("heart/train:dev")["Id"]
    assert "Not for use on patients" in (ROOT / ".run" / "report.html").read_text()


def test_airflow_tells_what_each_stage_did_without_its_log(stack, first):
    (etl,) = stack.airflow("dags/etl_dag/dagRuns")["dag_runs"]
    (models,) = stack.airflow("dags/ml_dag/dagRuns")["dag_runs"]
    assert etl["state"] == models["state"] == "success" and models["run_type"] == "asset_triggered"
    path = f"dags/ml_dag/dagRuns/{urllib.parse.quote(models['dag_run_id'])}"
    (event,) = stack.airflow(f"{path}/upstreamAssetEvents")["asset_events"]
    assert event["source_run_id"] == etl["dag_run_id"] and event["source_task_id"] == "announce"
    loads = stack.airflow(f"dags/etl_dag/dagRuns/{urllib.parse.quote(etl['dag_run_id'])}/taskInstances", limit=100)
    loads = [t for t in loads["task_instances"] if t["task_id"] == "deliver.load"]
    assert [t["state"] for t in loads] == ["success"] * 4 and {t["try_number"] for t in loads} == {1}
    assert {t["pool"] for t in loads} == {"stages"}
    told = stack.airflow(f"{path}/taskInstances/evaluate/xcomEntries/return_value", deserialize="true")["value"]
    assert told["metrics"]["decision"] == "promoted" and told["metrics"]["metrics"]["auc"]["value"] > 0.9
    assert len(json.dumps(told)) < 20_000, "XCom holds the document, not the data"
    for task in ("train", "evaluate"):
        address = stack.airflow(f"{path}/taskInstances/{task}/links")["extra_links"]["MLflow run"]
        assert address.startswith(stack.address("MLFLOW")) and told["metrics"]["mlflow_run_id"] in address


def test_the_dags_parameters_are_checked(stack):
    for conf in ({"dialect": "latin"}, {"batch": "cleveland"}, {"force": 3}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            stack.airflow("dags/etl_dag/dagRuns", {"logical_date": None, "conf": conf})
        assert refused.value.code == 400


def test_a_paused_dag_is_named_before_anything_is_done(stack, first):
    before = stack.airflow("dags/etl_dag/dagRuns")["total_entries"]
    stack.airflow("dags/ml_dag", {"is_paused": True}, method="PATCH")
    try:
        done = stack.make("pipeline")
    finally:
        stack.airflow("dags/ml_dag", {"is_paused": False}, method="PATCH")
    assert done.returncode != 0 and "ml_dag is paused; switch it on" in done.stderr
    assert stack.airflow("dags/etl_dag/dagRuns")["total_entries"] == before


def test_nothing_is_left_of_the_stages_containers(stack, first):
    assert docker("ps", "--all", "--quiet", "--filter", f"label=heart.project={stack.project}") == ""


def test_people_find_green_runs_plots_and_tables(stack, first, window):
    (run,) = [r["dag_run_id"] for r in stack.airflow("dags/etl_dag/dagRuns")["dag_runs"]]
    with window.looking_at("airflow"):
        window.airflow(stack.address("AIRFLOW"), stack.credentials["AIRFLOW_PASSWORD"], run)

    mlflow = stack.mlflow
    version = ask_mlflow(mlflow, "registered-models/alias", name="heart-disease", alias="champion")["model_version"]
    plots = [f["path"] for f in ask_mlflow(mlflow, "artifacts/list", run_id=version["run_id"], path="plots")["files"]]
    experiment = ask_mlflow(mlflow, "runs/get", run_id=version["run_id"])["run"]["info"]["experiment_id"]
    with window.looking_at("mlflow"):
        window.mlflow(mlflow, experiment, version["run_id"], next(name for name in plots if "roc" in name))

    with window.looking_at("pgadmin"):
        shown = window.pgadmin(stack.address("PGADMIN"), stack.credentials["PGADMIN_PASSWORD"])
    assert {"account_dim", "heart_disease_dim", "heart_fact"} <= set(shown)


@pytest.mark.parametrize(("name", "width", "dark"), [("report", 1280, False), ("report-phone", 390, False), ("dark", 1280, True)])
def test_the_report_reads_on_a_desk_on_a_phone_and_in_the_dark(first, window, name, width, dark):
    with window.looking_at(name):
        window.report(ROOT / ".run" / "report.html", width, dark)


def test_a_second_run_with_nothing_new_skips_everything_and_writes_nothing(stack, first):
    before = stack.tables()
    versions = ask_mlflow(stack.mlflow, "model-versions/search")["model_versions"]
    done = stack.make("pipeline")
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((ROOT / ".run" / "summary.json").read_text())
    assert {stage["outcome"] for stage in again["stages"]} == {"unchanged"}
    assert len(again["stages"]) == 3 * 4 + 3
    assert stack.tables() == before
    assert ask_mlflow(stack.mlflow, "model-versions/search")["model_versions"] == versions


def test_a_refused_batch_fails_the_run_with_its_reason_and_is_not_tried_again(stack, first):
    done = stack.make("pipeline", "BATCH=cleveland nowhere")
    assert done.returncode != 0
    assert "extract nowhere" in done.stdout and "no such file" in done.stdout
    run = stack.airflow("dags/etl_dag/dagRuns", order_by="-run_after", limit=1)["dag_runs"][0]
    tasks = stack.airflow(f"dags/etl_dag/dagRuns/{urllib.parse.quote(run['dag_run_id'])}/taskInstances", limit=100)
    (failed,) = [t for t in tasks["task_instances"] if t["task_id"] == "deliver.extract" and t["state"] == "failed"]
    assert run["state"] == "failed" and failed["try_number"] == 1
    log = stack.make("logs/extract")
    assert log.returncode == 0 and "no such file" in log.stdout
    assert stack.query("SELECT count(*) FROM heart_analysis.heart_fact") == [["920"]]


def test_the_champion_is_asked_followed_and_looked_up_by_hand(stack, first):
    answered = stack.make("predict", "ARGS=--age 54 --sex 1 --cp 4")
    assert answered.returncode == 0 and answered.stdout.startswith("Probability of heart disease: 0."), answered.stderr
    wrong = stack.make("predict", "ARGS=--age 540")
    assert wrong.returncode != 0 and "540" in wrong.stderr and "--age" in wrong.stderr
    history = stack.make("history")
    assert history.returncode == 0 and "promoted" in history.stdout
    back = stack.make("rollback")
    assert back.returncode != 0 and "first champion" in back.stderr

    served = stack.make("serve")
    assert served.returncode == 0, served.stdout + served.stderr
    address = stack.address("MODEL")
    wait_until(lambda: ask_model(address, {})[0] != 503)
    person = dict.fromkeys(FEATURES) | {"age": 54, "sex": 1, "cp": 4}
    code, answer, version = ask_model(address, {"dataframe_records": [person]})
    assert (code, version) == (200, "1") and 0.5 < answer["predictions"][0][1] < 1
    brief = {"age": 54, "sex": 1, "cp": 4}
    assert ask_model(address, {"dataframe_records": [brief]})[1] == answer, "what is not known may be left out"
    for name, value in (("cp", 9), ("age", "old"), ("chol", 5000)):
        code, answer, _ = ask_model(address, {"dataframe_records": [person | {name: value}]})
        assert code == 400 and name in answer["message"], (name, answer)
    del brief["age"]
    code, answer, _ = ask_model(address, {"dataframe_records": [brief]})
    assert code == 400 and "age" in answer["message"]

    # It follows the alias to another version: the same model, registered once more.
    mlflow = stack.mlflow
    oldest = stack.versions()[-1]
    model = {"source": oldest["source"], "model_id": oldest["source"].removeprefix("models:/"), "run_id": oldest["run_id"]}
    other = ask_mlflow(mlflow, "model-versions/create", model | {"name": "heart-disease"})["model_version"]["version"]
    alias = {"name": "heart-disease", "alias": "champion"}
    ask_mlflow(mlflow, "registered-models/alias", alias | {"version": other})
    wait_until(lambda: ask_model(address, {})[2] == other)
    ask_mlflow(mlflow, "registered-models/alias", alias | {"version": "1"})


def ask_model(address: str, body: dict[str, Any]) -> tuple[int, Any, str | None]:
    """Ask the scoring server; return the status, the answer, and the version that answered."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer), answer.headers["x-model-version"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers["x-model-version"]


def test_a_cancelled_task_takes_its_container_along(stack, first):
    path = stack.trigger("ml_dag", force=True).path
    mine = ("--filter", f"label=heart.project={stack.project}", "--filter", "label=heart.task=train")
    wait_until(lambda: docker("ps", "--quiet", *mine))
    stack.airflow(path, {"state": "failed"}, method="PATCH")
    wait_until(lambda: not docker("ps", "--all", "--quiet", "--filter", f"label=heart.project={stack.project}"))
    assert stack.airflow(f"{path}/taskInstances/train")["state"] in ("failed", "skipped")


def test_leftover_containers_are_found_and_removed(stack, first):
    known = {"project": stack.project, "stage": "extract", "run": "lost", "dag": "etl_dag", "task": "deliver.extract", "try": "1"}
    labels = [f"--label=heart.{name}={value}" for name, value in known.items()]
    left = docker("create", *labels, "heart/extract:dev")
    fresh = docker("run", "--detach", *labels, "--entrypoint=sleep", "heart/extract:dev", "60")
    # Of a stage that there no longer is: nobody will come for it.
    gone = docker("run", "--detach", *labels, "--label=heart.stage=gone", "--entrypoint=sleep", "heart/extract:dev", "60")
    try:
        from housekeeping_dag import UNREAD, is_leftover, moment

        now = moment(inspect(left)["Created"])
        assert not is_leftover(inspect(left), now) and is_leftover(inspect(left), now + UNREAD + timedelta(seconds=1))
        limit = 2 * STAGES["extract"].timeout
        assert not is_leftover(inspect(fresh), now + limit) and is_leftover(inspect(fresh), now + limit + timedelta(hours=1))
        name = inspect(gone)["Name"].lstrip("/")
        run = stack.trigger("housekeeping_dag")
        assert stack.wait_for_run(run) == "success"
        removed = stack.airflow(f"{run.path}/taskInstances/reap/xcomEntries/return_value", deserialize="true")["value"]
        assert removed == [name]
        there = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label=heart.project={stack.project}").split()
        assert set(there) == {left, fresh}
    finally:
        subprocess.run(["docker", "rm", "--force", left, fresh, gone], capture_output=True)


def test_a_new_batch_that_has_drifted_sets_off_training_on_it_too(stack, first):
    folder = Path(stack.environment["HEART_DATA"]) / "prague"
    folder.mkdir()
    for name in ("account_raw.csv", "heart_raw.csv"):
        lines = (ROOT / "data" / "hungary" / name).read_text().splitlines()[:61]
        folder.joinpath(name).write_text("\n".join([lines[0], *(f"PRG-{line}" for line in lines[1:])]) + "\n")
    before = {run["dag_run_id"] for run in stack.airflow("dags/ml_dag/dagRuns", limit=100)["dag_runs"]}
    done = stack.make("pipeline")
    assert done.returncode == 0, done.stdout + done.stderr

    def set_off() -> list[dict[str, Any]]:
        runs = stack.airflow("dags/ml_dag/dagRuns", limit=100)["dag_runs"]
        return [run for run in runs if run["dag_run_id"] not in before and run["conf"].get("training_batch")]

    wait_until(lambda: [run["state"] for run in set_off()] in (["success"], ["failed"]), 1)
    (retrained,) = set_off()
    assert retrained["state"] == "success" and retrained["conf"]["training_batch"] == "cleveland prague"
    path = f"dags/ml_dag/dagRuns/{urllib.parse.quote(retrained['dag_run_id'])}/taskInstances"
    assert stack.airflow(f"{path}/retrain")["state"] == "skipped", "it does not go on for ever"
    told = stack.airflow(f"{path}/evaluate/xcomEntries/return_value", deserialize="true")["value"]["metrics"]
    assert told["trained_on"] == ["cleveland", "prague"] and told["decision"] in ("promoted", "kept champion")


@pytest.mark.parametrize("name", ["BROKER_PASSWORD", "POSTGRES_DB_PASSWORD", "AIRFLOW_JWT_SECRET", "HEART_LOAD_DB_PASSWORD"])
def test_nothing_starts_while_a_credential_is_missing(stack, name, tmp_path):
    there = (ROOT / f".credentials-{stack.project}").read_text().splitlines()
    lacking = tmp_path / "credentials"
    lacking.write_text("\n".join(line for line in there if not line.startswith(f"{name}=")))
    environment = stack.environment | {"HEART_CREDENTIALS": str(lacking)}
    command = ["docker", "compose", "run", "--rm", "secrets"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and f"{name} is missing; `make up` adds what is missing" in done.stderr
    config = json.loads(stack.compose("config", "--format", "json"))["services"]

    def waits_for_secrets(service: str) -> bool:
        return any(needed == "secrets" or waits_for_secrets(needed) for needed in config[service].get("depends_on", {}))

    assert all(waits_for_secrets(service) for service in config if service != "secrets")


def test_destroy_asks_first(stack, first):
    refused = stack.make("destroy")
    assert refused.returncode != 0 and "nothing was removed" in refused.stderr
    assert stack.query("SELECT count(*) >= 920 FROM heart_analysis.heart_fact") == [["t"]]

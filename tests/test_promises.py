"""Every promise of the contract, image by image, kept and broken: README.md numbers them."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from containers import Container, container_of, docker_arguments
from runners import ContainerRunner, docker, inspect, wait_until
from support import (
    ACCOUNT_HEADER,
    DONE,
    ENVIRONMENTS,
    HEART_HEADER,
    NOTHING_TO_DO,
    REFUSED,
    ROOT,
    STAGES,
    UNAVAILABLE,
    Delivery,
    Outcome,
    Warehouse,
    make_warehouse,
)

SERVERS = ("mlflow", "airflow")
LABELS = ("title", "description", "version", "revision", "source", "licenses")
in_containers = pytest.mark.parametrize("services", [pytest.param("container", marks=pytest.mark.docker)], indirect=True)
each_stage = pytest.mark.parametrize("stage", STAGES)
PER_BATCH = [name for name in STAGES if STAGES[name].per_batch]


def batch_of(stage: str) -> str | None:
    return "cleveland" if STAGES[stage].per_batch else None


@pytest.fixture
def later(trained, tmp_path) -> Delivery:
    """Give a copy of what was delivered and made, for a test to break, and one person without a diagnosis to score."""
    delivery, _, _ = trained
    copy = Delivery(tmp_path / "later", variables=dict(delivery.variables), runner=delivery.runner)
    shutil.copytree(delivery.artifacts, copy.artifacts, ignore=shutil.ignore_patterns(".latest"))
    subprocess.run(["chmod", "-R", "a+rwX", str(copy.artifacts)], check=True)
    shutil.copytree(ROOT / "data" / "cleveland", copy.data / "cleveland")
    copy.write("undiagnosed", f"{ACCOUNT_HEADER}\nU1;60;1\n", f"{HEART_HEADER}\nU1;4;150;250;0;0;120;1;2.0;2;1;7;?\n")
    return copy


# 1. --help works with no network. What it must name, test_contract.py checks.
@pytest.mark.docker
@each_stage
def test_help_needs_no_network_no_folder_and_no_variable(stage):
    hardened = docker_arguments(replace(container_of(STAGES[stage]), networks=(), volumes={}, environment={}))
    assert f"Usage: {stage}.py" in docker("run", "--rm", *hardened, f"heart/{stage}:dev", "--help")


# 2. Exit codes, each by what really causes it. 0 is proven by `trained`, 2 in test_contract.py, 99 below.
@in_containers
@each_stage
def test_refused_input_ends_with_65_and_a_line_that_says_what_to_do(stage, later):
    batch, arguments = batch_of(stage), []
    if stage == "extract":
        (later.data / "cleveland" / "heart_raw.csv").write_text("who;knows\n1;2\n")
        says = r"heart_raw\.csv: line 1: .* missing; there are who, knows"
    elif batch:
        with (later.artifacts / "run-1" / STAGES[stage].upstream[0] / batch / RECORDS[stage]).open("a") as file:
            file.write("1\n")
        says = f"{RECORDS[stage]}: altered or cut short since {STAGES[stage].upstream[0]} wrote it"
    elif stage == "train":
        arguments, says = ["--training-batch", "budapest"], "budapest"
    elif stage == "evaluate":
        (later.artifacts / "run-1" / "train" / "result.json").unlink()
        says = "no result of train for run 'run-1'; run train first"
    else:
        later.etl("undiagnosed")
        says = "is stored as cloudpickle, which can run code when it is read"
        with champion_that_is_a_pickle(later.variables["MLFLOW_TRACKING_URI"]):
            assert re.search(says, later.stage(stage, expect=REFUSED).error)
        return
    assert re.search(says, later.stage(stage, batch, *arguments, expect=REFUSED).error)


RECORDS = {"transform": "heart.csv", "load": "records.csv"}
PICKLE = """
import sys, mlflow
from sklearn.dummy import DummyClassifier
client = mlflow.MlflowClient()
before = client.get_model_version_by_alias("heart-disease", "champion").version
model = DummyClassifier().fit([[0.0]], [0])
with mlflow.start_run():
    how = {"serialization_format": "cloudpickle", "registered_model_name": "heart-disease"}
    logged = mlflow.sklearn.log_model(model, name="model", **how)
client.set_registered_model_alias("heart-disease", "champion", logged.registered_model_version)
print("", before, logged.registered_model_version)
"""
RESTORE = """
import sys, mlflow
client = mlflow.MlflowClient()
client.set_registered_model_alias("heart-disease", "champion", sys.argv[1])
client.delete_model_version("heart-disease", sys.argv[2])
"""


@contextmanager
def champion_that_is_a_pickle(address: str) -> Iterator[None]:
    """Make a model that could run code the champion for a while."""
    python = [str(ENVIRONMENTS / "train" / "bin" / "python"), "-c"]
    environment = {"MLFLOW_TRACKING_URI": address, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*python, PICKLE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    versions = done.stdout.splitlines()[-1].split()
    try:
        yield
    finally:
        subprocess.run([*python, RESTORE, *versions], env=environment, check=True, capture_output=True)


AWAY = [
    (stage, variables, says)
    for stage in STAGES
    for variable, variables, says in (
        ("PGHOST", {"PGPORT": "1"}, "PostgreSQL: .* refused"),
        ("PGHOST", {"PGHOST": "nowhere"}, "PostgreSQL: .*nowhere"),
        ("MLFLOW_TRACKING_URI", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "MLflow at http://127.0.0.1:1"),
    )
    if variable in STAGES[stage].variables
]


@in_containers
@pytest.mark.parametrize(("stage", "variables", "says"), AWAY)
def test_a_service_that_is_away_ends_with_75_and_a_line_that_names_it(stage, variables, says, later):
    outcome = later.stage(stage, batch_of(stage), "--force", expect=UNAVAILABLE, **variables)
    assert re.search(says, outcome.error) and outcome.error.endswith("try again")


class OnVolume(ContainerRunner):
    """Runs stages on a volume of a fixed size."""

    volume = ""

    def container(self, stage: str, given: dict[str, str]) -> Container:
        container = super().container(stage, given)
        return replace(container, volumes=container.volumes | {given["HEART_ARTIFACTS"]: self.volume})


@in_containers
@pytest.mark.parametrize(("stage", "kilobytes"), [*((stage, 0) for stage in PER_BATCH), ("transform", 100)])
def test_a_full_volume_ends_with_75_and_a_retry_succeeds_once_there_is_room(stage, kilobytes, later, tmp_path):
    here = later.runner
    runner = OnVolume(here.network, here.addresses)
    runner.volume = docker("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=size=2m,mode=1777")
    # A tmpfs lives as long as a container has it.
    holder = docker("run", "--detach", "--rm", "--init", "--user=0", f"--volume={runner.volume}:/artifacts", "--entrypoint=sleep",
                    "heart/base:dev", "infinity")  # fmt: skip
    try:
        small = Delivery(tmp_path / "small", run="run-2", variables=later.variables | make_warehouse(
            {k: v for k, v in later.variables.items() if k.startswith("PG")}), runner=runner)  # fmt: skip
        small.folder.mkdir()
        small.data.symlink_to(ROOT / "data")
        for before in PER_BATCH[: PER_BATCH.index(stage)]:
            small.stage(before, "cleveland")
        # A block is left, and the stage's log needs none: what it writes does not fit.
        docker("exec", holder, "sh", "-c", "cat /dev/zero > /artifacts/filler 2>/dev/null || true")
        if kilobytes:
            docker("exec", holder, "truncate", f"--size=-{kilobytes}K", "/artifacts/filler")
        outcome = small.stage(stage, "cleveland", expect=UNAVAILABLE)
        assert "No space left on device; make room there, then try again" in outcome.error
        docker("exec", holder, "rm", "/artifacts/filler")
        small.stage(stage, "cleveland", expect=NOTHING_TO_DO if stage == "load" else DONE)
        left = docker("exec", holder, "find", "/artifacts", "-name", ".*", "-not", "-path", "*/.latest*", "-mindepth", "1")
        assert not left, "temporary files stay"
    finally:
        docker("rm", "--force", holder)
        docker("volume", "rm", runner.volume)


# 3. One result document: written, printed, balanced. 4. Logs say whose they are.
@in_containers
@each_stage
def test_the_result_is_one_document_and_every_line_of_the_log_says_whose_it_is(stage, trained):
    delivery, _, outcomes = trained
    outcome = outcomes.get(stage) or delivery.stage(stage, expect=(DONE, NOTHING_TO_DO))
    batch = batch_of(stage)
    assert {"stage": stage, "run": "run-1", "batch": batch}.items() <= outcome.result.items()
    rows = outcome.rows
    assert rows["in"] == rows["out"] + rows["rejected"] + rows["duplicate"]
    lines = outcome.stderr.splitlines()
    assert len(lines) >= 2
    for line in (json.loads(line) if line.startswith("{") else pytest.fail(line) for line in lines):
        assert (line["stage"], line["run"], line["batch"]) == (stage, "run-1", batch)
        assert line["level"] == "INFO" and line["message"] and line["time"]


LOOK_INSIDE = """
import importlib.metadata, importlib.util, json, os, pathlib, shutil, sys
folders = [f for f in ("/heart", "/packages", "/stage") if os.path.isdir(f)]
sources = [p for f in folders for p in pathlib.Path(f).rglob("*.py")]
compiled = {str(p): pathlib.Path(importlib.util.cache_from_source(str(p))).exists() for p in sources}
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
def refused(path):
    try:
        open(path, "w")
    except OSError as error:
        return error.errno in (1, 13, 30)
print(json.dumps({
    "user": os.getuid(),
    "capabilities": [status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no new privileges": status["NoNewPrivs"].strip(),
    "packages": sorted({d.name for d in importlib.metadata.distributions()}),
    "importable": [m for m in ("pip", "uv", "ensurepip", "setuptools", "wheel") if importlib.util.find_spec(m)],
    "tools": [t for t in ("pip", "pip3", "uv", "gcc", "cc", "ld", "make", "git", "curl", "wget") if shutil.which(t)],
    "writable": [f for f in [*folders, "/", "/usr", "/etc", "/artifacts", "/run"] if not refused(f + "/x")],
    "uncompiled": [p for p, there in compiled.items() if not there and not p.startswith("/packages")],
    "compiled share": sum(compiled.values()) / len(compiled),
}))
"""


def locked(image: str) -> set[str]:
    lock = (ROOT / "images" / image / "requirements.txt").read_text()
    return {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, flags=re.MULTILINE)}


# 5. Nobody's user, nothing to write to, no capability. 9. Only its own packages, compiled; nothing to install more with.
@pytest.mark.docker
@pytest.mark.parametrize("image", [*STAGES, *SERVERS])
def test_an_image_holds_what_it_needs_runs_as_nobody_and_can_write_nowhere(image):
    contract = STAGES.get(image) or STAGES["extract"]
    hardened = docker_arguments(replace(container_of(contract), networks=(), volumes={}, environment={}))
    inside = json.loads(docker("run", "--rm", *hardened, "--entrypoint=python", f"heart/{image}:dev", "-c", LOOK_INSIDE))
    assert inside["user"] == 10001
    assert set(inside["capabilities"]) == {"0" * 16} and inside["no new privileges"] == "1"
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in inside["packages"]} <= locked(image)
    assert inside["importable"] == inside["tools"] == inside["writable"] == inside["uncompiled"] == []
    assert inside["compiled share"] > 0.95, "some packages hold templates that are no Python"


@pytest.mark.docker
@pytest.mark.parametrize("image", [*STAGES, *SERVERS])
def test_an_image_says_what_it_is_and_how_it_is_run_and_stopped(image):
    config = inspect(f"heart/{image}:dev")["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"][0] == "python", "exec form: the stage itself gets the signals"
    assert all(config["Labels"].get(f"org.opencontainers.image.{label}") for label in LABELS), config["Labels"]
    assert bool(config.get("Healthcheck")) == (image in SERVERS), "servers have a health check, stages end"


# 6. Again, with the same inputs: nothing changes and nothing is lost.
@in_containers
@each_stage
def test_again_it_finds_nothing_to_do_and_changes_nothing(stage, trained):
    delivery, warehouse, _ = trained
    delivery.stage(stage, batch_of(stage), expect=(DONE, NOTHING_TO_DO))
    before = contents(delivery, warehouse)
    outcome = delivery.stage(stage, batch_of(stage), expect=NOTHING_TO_DO)
    assert outcome.result["outcome"] == "unchanged"
    written = delivery.artifacts / "run-1" / stage / (batch_of(stage) or "") / "result.json"
    assert json.loads(written.read_text()) == outcome.result, "what is printed is what is kept"
    for file in outcome.result["outputs"]:
        assert hashlib.sha256((delivery.artifacts / file["uri"]).read_bytes()).hexdigest() == file["sha256"]
    assert contents(delivery, warehouse) == before


def contents(delivery: Delivery, warehouse: Warehouse) -> dict[str, object]:
    """Return all that stages wrote: files but for result documents, and tables."""
    found: dict[str, object] = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in delivery.artifacts.rglob("*") if path.is_file() and path.name != "result.json"
    }  # fmt: skip
    tables = (
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'heart_analysis' AND table_type = 'BASE TABLE'"
    )
    for (table,) in warehouse.query(tables):
        found[table] = sorted(warehouse.query(f"SELECT t::text FROM heart_analysis.{table} t"))
    return found


# 7. Gone within 3 s of SIGTERM, in the middle of work, with nothing half done.
MIDDLE = {"extract": "started", "transform": "started", "train": "judged always", "evaluate": "judged"}


@in_containers
@each_stage
def test_stopped_in_the_middle_of_work_it_is_gone_in_3_seconds_and_leaves_nothing_half_done(stage, later, tmp_path):
    delivery = Delivery(tmp_path / "long", run="run-1", variables=later.variables, runner=later.runner)
    warehouse = Warehouse({k: v for k, v in later.variables.items() if k.startswith("PG")})
    batch = batch_of(stage)
    shutil.copytree(later.artifacts, delivery.artifacts)
    subprocess.run(["chmod", "-R", "a+rwX", str(delivery.artifacts)], check=True)
    if batch:
        write_long(delivery, batch)
        delivery.run = "run-2"
        for before in PER_BATCH[: PER_BATCH.index(stage)]:
            delivery.stage(before, batch)
    with nullcontext() if stage in MIDDLE else warehouse.held():
        there = tree(delivery.artifacts)
        running = delivery.runner.start(stage, ("--force",), delivery.given(batch))
        if stage in MIDDLE:
            running.wait_for(MIDDLE[stage])
            if stage == "transform":  # into the middle of a query, which makes an error of its own of the interruption
                wait_until(lambda: any(delivery.artifacts.rglob("scratch.duckdb")))
        else:
            wait_until(warehouse.has_waiting)
        code, seconds = running.stop(signal.SIGTERM)
        assert code == 128 + signal.SIGTERM and seconds < 3
    assert tree(delivery.artifacts) == there


def write_long(delivery: Delivery, batch: str, people: int = 200_000) -> None:
    """Deliver a batch that takes seconds to work on."""
    numbers = range(people)
    accounts = "".join(f"L{i};{30 + i % 50};{i % 2}\n" for i in numbers)
    hearts = "".join(f"L{i};{1 + i % 4};{100 + i % 80};{150 + i % 200};0;0;150;0;1.0;2;0;3;{i % 2}\n" for i in numbers)
    delivery.write(batch, f"{ACCOUNT_HEADER}\n{accounts}", f"{HEART_HEADER}\n{hearts}")


def tree(folder: Path) -> set[str]:
    """Return the names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# 8. No credential in image, history, environment, logs or artifacts.
@pytest.mark.docker
@pytest.mark.parametrize("image", [*STAGES, *SERVERS])
def test_an_image_holds_no_credential(image):
    text = docker("history", "--no-trunc", "--format={{.CreatedBy}}", f"heart/{image}:dev")
    text += json.dumps(inspect(f"heart/{image}:dev")["Config"])
    assert not re.search(r"(?i)passw|secret|token|api[_-]?key|://[^/ ]*:[^/ ]*@", text)


@in_containers
@each_stage
def test_the_password_is_in_no_log_no_artifact_and_nothing_that_the_engine_shows(stage, trained):
    delivery, _, outcomes = trained
    password = Path(delivery.variables["PGPASSFILE"]).read_text().strip().rsplit(":", 1)[1]
    assert len(password) == 32
    outcome: Outcome = outcomes.get(stage) or delivery.stage(stage, expect=(DONE, NOTHING_TO_DO))
    container = delivery.runner.container(stage, {k: str(v) for k, v in delivery.given(batch_of(stage)).items()
                                                  if k in STAGES[stage].variables})  # fmt: skip
    created = docker("create", *docker_arguments(container), container.image)
    try:
        shown = json.dumps(inspect(created))
    finally:
        docker("rm", created)
    assert "HEART_ARTIFACTS" in shown
    for text in (shown, outcome.stdout, outcome.stderr, *(p.read_text() for p in delivery.artifacts.rglob("*") if p.is_file())):
        assert password not in text


@pytest.mark.docker
def test_a_change_of_code_touches_one_layer(tmp_path):
    """Two builds that differ in a line of code share every layer but the last."""
    shutil.copytree(ROOT / "images" / "load", tmp_path / "load")
    before = inspect("heart/load:dev")["RootFS"]["Layers"]
    with (tmp_path / "load" / "load.py").open("a") as file:
        file.write("# another line\n")
    docker("buildx", "build", "--quiet", "--load", "--tag=heart-test/load:dev", str(tmp_path / "load"))
    try:
        after = inspect("heart-test/load:dev")["RootFS"]["Layers"]
    finally:
        docker("rmi", "heart-test/load:dev")
    assert before[:-1] == after[:-1] and before[-1] != after[-1]


@pytest.mark.docker
def test_train_evaluate_and_predict_share_the_layers_that_weigh():
    shared = inspect("heart/ml:dev")["RootFS"]["Layers"]
    for image in ("train", "evaluate", "predict"):
        assert inspect(f"heart/{image}:dev")["RootFS"]["Layers"][: len(shared)] == shared

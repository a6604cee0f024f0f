"""What the tests share: running a stage as its users do, and making deliveries.

A run fails the test unless it ends with the expected exit code, leaves no traceback and logs no unexpected WARNING or
ERROR. The variables that a stage gets are those of the contract; nothing else of this machine's environment.
"""

import base64
import contextlib
import itertools
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".run" / "env"
sys.path[:0] = [str(ROOT / folder) for folder in ("dags", "embedded", "stack", "images/ml", "images/evaluate")]

from runners import ProcessRunner, Running  # noqa: E402
from stages import DONE, NOTHING_TO_DO, REFUSED, RESULT_MARKER, STAGES, UNAVAILABLE, USAGE  # noqa: E402

__all__ = ["DONE", "NOTHING_TO_DO", "REFUSED", "RESULT_MARKER", "STAGES", "UNAVAILABLE", "USAGE"]

ACCOUNT_HEADER = "account_id;age;sex"
HEART_HEADER = "account_id;cp;trestbps;chol;fbs;restecg;thalach;exang;oldpeak;slope;ca;thal;target"
FEATURES = ["age", "sex", *HEART_HEADER.split(";")[1:-1]]
KAGGLE_HEADER = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,target"

_numbers = itertools.count()

# Long lists of cases run as processes: that images behave like these is shown by the tests beside them.
as_processes = pytest.mark.parametrize("runner", ["process"], indirect=True)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: its exit code, result document, log as dicts, and all that it printed."""

    code: int
    result: dict[str, Any] | None
    log: list[dict[str, Any]]
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """Return the one line with which an expected failure ended."""
        (message,) = [line["message"] for line in self.log if line["level"] == "ERROR"]
        return message

    @property
    def rows(self) -> dict[str, int]:
        """Return the counts of the result document."""
        assert self.result is not None
        return self.result["rows"]


def run_stage(
    stage: str, *arguments: object, expect: int | tuple[int, ...] = DONE, runner: Any = None, **variables: Any
) -> Outcome:
    """Run a stage and return how it ended; the test fails where that is not as expected."""
    code, stdout, stderr = (runner or ProcessRunner()).start(stage, arguments, variables).finish()
    outcome = read_outcome(code, stdout, stderr)
    expected = (expect,) if isinstance(expect, int) else expect
    assert code in expected, f"{stage} ended with {code}, not {expect}:\n{stdout}{stderr}"
    assert "Traceback" not in stdout + stderr
    unexpected = [line for line in outcome.log if line["level"] in ("WARNING", "ERROR", "CRITICAL")]
    if code in (REFUSED, UNAVAILABLE):
        assert len([line for line in unexpected if line["level"] == "ERROR"]) == 1, stderr
        assert "\n" not in outcome.error
    elif code != USAGE:
        assert not unexpected, stderr
        assert "--help" in arguments or len(outcome.log) == len(stderr.splitlines()), "lines that are no log"
    return outcome


def read_outcome(code: int, stdout: str, stderr: str) -> Outcome:
    """Understand what a stage printed."""
    results = [json.loads(line.removeprefix(RESULT_MARKER)) for line in stdout.splitlines() if line.startswith(RESULT_MARKER)]
    log = []
    for line in stderr.splitlines():
        with contextlib.suppress(ValueError):
            log.append(json.loads(line))
    return Outcome(code, results[-1] if results else None, log, stdout, stderr)


@dataclass
class Delivery:
    """A folder of batches and the artifacts of their runs, inside a test's own folder."""

    folder: Path
    run: str = "run-1"
    dialect: str = "uci"
    variables: dict[str, Any] = field(default_factory=dict)
    runner: Any = field(default_factory=ProcessRunner)

    @property
    def data(self) -> Path:
        """Return the folder with the batches."""
        return self.folder / "data"

    @property
    def artifacts(self) -> Path:
        """Return the folder that the stages share."""
        return self.folder / "artifacts"

    def write(self, batch: str, accounts: str | bytes | None, hearts: str | bytes | None) -> None:
        """Deliver the two files of a batch; None leaves one out."""
        folder = self.data / batch
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("account_raw.csv", accounts), ("heart_raw.csv", hearts)):
            (folder / name).unlink(missing_ok=True)
            if content is not None:
                (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    def write_kaggle(self, batch: str, content: str | bytes) -> None:
        """Deliver a batch in Kaggle's layout."""
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / f"{batch}.csv").write_bytes(content.encode() if isinstance(content, str) else content)

    def stage(
        self, stage: str, batch: str | None = None, *arguments: object, expect: int | tuple[int, ...] = DONE, **variables: Any
    ) -> Outcome:
        """Run a stage on a batch of this delivery."""
        given = self.given(batch) | variables
        return run_stage(stage, *arguments, expect=expect, runner=self.runner, **given)

    def start(self, stage: str, batch: str | None = None) -> Running:
        """Start a stage on a batch of this delivery."""
        return self.runner.start(stage, (), self.given(batch))

    def given(self, batch: str | None) -> dict[str, Any]:
        """Return the variables that a stage is given."""
        given = {"HEART_RUN": self.run, "HEART_ARTIFACTS": self.artifacts, "HEART_DATA": self.data, "HEART_DIALECT": self.dialect}
        if batch is not None:
            given["HEART_BATCH"] = batch
        return given | self.variables

    def etl(self, batch: str) -> dict[str, Outcome]:
        """Take a batch through extract, transform and load."""
        return {name: self.stage(name, batch) for name in STAGES if STAGES[name].per_batch}

    def output(self, outcome: Outcome, name: str) -> Path:
        """Return the path of a file that a stage wrote."""
        assert outcome.result is not None
        (uri,) = [output["uri"] for output in outcome.result["outputs"] if output["uri"].endswith("/" + name)]
        return self.artifacts / uri


def ask_mlflow(address: str, path: str, body: dict[str, Any] | None = None, /, **query: str) -> dict:
    """Ask MLflow's REST API, or send it a body. The address may hold a login: http://user:password@host."""
    arguments = "&".join(f"{name}={value}" for name, value in query.items())
    scheme, _, place = address.rpartition("//")
    login, _, host = place.rpartition("@")
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    request = urllib.request.Request(f"{scheme}//{host}/api/2.0/mlflow/{path}?{arguments}", data, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return json.load(answer)


def draw(folder: Path, people: int, **options: int) -> None:
    """Make a delivery of many people, drawn from the real ones, with the options of people.py."""
    python, program = ENVIRONMENTS / "transform/bin/python", ROOT / "tests/bench/people.py"
    given = [f"--{name}={value}" for name, value in {"people": people, **options}.items()]
    subprocess.run([str(python), str(program), str(folder), *given], check=True)


def base_environment() -> dict[str, str]:
    """Return this machine's environment without what earlier runs, or the `make` around the tests, may have set."""
    foreign = ("HEART_", "AIRFLOW", "PG", "MLFLOW", "MAKE", "MFLAGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def make_database(postgres: dict[str, str]) -> dict[str, str]:
    """Make an empty database; return libpq's variables for it."""
    import servers

    name = f"test_{next(_numbers)}"
    with contextlib.closing(servers.connect(postgres)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
    return postgres | {"PGDATABASE": name}


def make_warehouse(postgres: dict[str, str]) -> dict[str, str]:
    """Make an empty warehouse in a database of its own; return libpq's variables for it."""
    import servers

    environment = make_database(postgres)
    servers.apply_sql(environment)
    return environment


@contextlib.contextmanager
def mlflow_on(database: dict[str, str], state: Path) -> Iterator[str]:
    """Run an MLflow server with its own registry in a database; give its address."""
    import servers

    state.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "STATE", state)
        patch.setattr(servers, "LOGS", state)
        with servers.mlflow_server(database, name=database["PGDATABASE"]) as server:
            server.wait()
            yield server.uri


class Warehouse:
    """A warehouse that can be asked."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def query(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, or none for a statement."""
        import servers

        with contextlib.closing(servers.connect(self.environment)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold heart_fact, so that whoever needs it waits in the middle of its work."""
        import servers

        with contextlib.closing(servers.connect(self.environment)) as holder, holder.cursor() as cursor:
            cursor.execute("LOCK TABLE heart_analysis.heart_fact IN ACCESS EXCLUSIVE MODE")
            yield

    def has_waiting(self) -> bool:
        """Return whether a stage waits for a lock in this warehouse."""
        waiting = "datname = current_database() AND wait_event_type = 'Lock' AND application_name LIKE 'heart-%'"
        return bool(self.query(f"SELECT 1 FROM pg_stat_activity WHERE {waiting}"))

"""A whole system for tests and benchmarks, under a name and on ports of its own."""

import contextlib
import json
import secrets
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stack import state_of

from runners import docker, wait_until
from support import ROOT, Delivery, Warehouse, ask_mlflow, base_environment, make_warehouse


class Run(NamedTuple):
    """A run of a DAG."""

    dag: str
    id: str

    @property
    def path(self) -> str:
        """Return where Airflow's REST API has it."""
        return f"dags/{self.dag}/dagRuns/{urllib.parse.quote(self.id)}"


@dataclass
class Stack:
    """A running system: the variables that lead to it and the checkout that it was started from."""

    environment: dict[str, str]
    folder: Path = ROOT
    tokens: list[str] = field(default_factory=list)

    @property
    def project(self) -> str:
        """Return the name that all its containers and volumes begin with."""
        return self.environment["COMPOSE_PROJECT_NAME"]

    def make(self, *arguments: str, timeout: int = 1200) -> "subprocess.CompletedProcess[str]":
        """Run a command of the Makefile."""
        return subprocess.run(
            ["make", *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    @property
    def credentials(self) -> dict[str, str]:
        """Return what its services are logged in to with."""
        return credentials(self.project)

    def compose(self, *arguments: str) -> str:
        """Run docker compose on it."""
        command = ["docker", "compose", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return each service's state: healthy, done, or another word."""
        services = map(json.loads, self.compose("ps", "--all", "--format", "json").splitlines())
        return {service["Service"]: state_of(service) for service in services}

    def address(self, page: str) -> str:
        """Return where one of its pages is."""
        return f"http://localhost:{self.environment[f'{page}_PORT']}"

    @property
    def mlflow(self) -> str:
        """Return MLflow's address with the login of its user."""
        return self.address("MLFLOW").replace("//", f"//heart:{self.credentials['MLFLOW_PASSWORD']}@")

    def query(self, query: str, database: str = "heart") -> list[list[str]]:
        """Return the rows of a query, in the warehouse unless another database is named."""
        psql = ("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", database, "-AtF", "\t", "-c", query)
        return [line.split("\t") for line in self.compose(*psql).splitlines()]

    def airflow(self, path: str, body: dict[str, Any] | None = None, method: str | None = None, **query: Any) -> Any:
        """Ask Airflow's REST API, as its user."""
        address = f"{self.address('AIRFLOW')}/api/v2/{path}?{urllib.parse.urlencode(query, doseq=True)}"
        try:
            return fetch(address, body, self.token(), method)
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):
                raise
            self.tokens.clear()  # of before a restart, or of an earlier password
            return fetch(address, body, self.token(), method)

    def token(self) -> str:
        """Log in to Airflow, once: each time costs the server the hash of a password."""
        if not self.tokens:
            login = {"username": "heart", "password": self.credentials["AIRFLOW_PASSWORD"]}
            self.tokens.append(fetch(f"{self.address('AIRFLOW')}/auth/token", login)["access_token"])
        return self.tokens[0]

    def trigger(self, dag: str, **conf: Any) -> "Run":
        """Start a run of a DAG."""
        return Run(dag, self.airflow(f"dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def wait_for_run(self, run: "Run") -> str:
        """Wait until a run has ended; return how. The API server may be away for a while."""
        states = [""]

        def ended() -> bool:
            with contextlib.suppress(OSError):  # urllib's errors among them
                states[0] = self.airflow(run.path)["state"]
            return states[0] in ("success", "failed")

        wait_until(ended, 0.5)
        return states[0]

    def rest(self) -> None:
        """Wait until no run is at work or about to start, those included that an asset sets off."""
        runs = "SELECT count(*) FROM dag_run WHERE state IN ('queued', 'running')"
        left = f"SELECT ({runs}) + (SELECT count(*) FROM asset_dag_run_queue)"
        wait_until(lambda: self.query(left, "airflow") == [["0"]], 1)

    def versions(self) -> list[dict[str, Any]]:
        """Return all model versions, the newest first."""
        return ask_mlflow(self.mlflow, "model-versions/search").get("model_versions", [])

    def containers(self) -> list[str]:
        """Return the ids of the stages' containers, ended ones too."""
        return docker("ps", "--all", "--quiet", "--filter", f"label=heart.project={self.project}").split()

    def kill(self, service: str) -> None:
        """End a service without a warning, and start it again."""
        self.compose("kill", "--signal", "KILL", service)
        self.compose("start", service)

    def tables(self) -> dict[str, list[list[str]]]:
        """Return all that stages wrote into the warehouse."""
        names = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'heart_analysis' ORDER BY 1")
        return {name: self.query(f"SELECT t::text FROM heart_analysis.{name} t ORDER BY 1") for (name,) in names}


def fetch(address: str, body: dict[str, Any] | None = None, token: str = "", method: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data, headers, method=method), timeout=120) as answer:  # noqa: S310
        return json.load(answer)


def credentials(project: str) -> dict[str, str]:
    lines = (ROOT / f".credentials-{project}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def running_stack(project: str, data: Path = ROOT / "data", repeats: int | None = None, also: str = "") -> Iterator[Stack]:
    """Bring a system up that takes its deliveries from a folder; remove it with its data at the end.

    repeats: of the cross-validation, where the usual number would only take longer; also: a file for compose beside the
    system's own.
    """
    ports = {f"{page}_PORT": free_port() for page in ("AIRFLOW", "MLFLOW", "PGADMIN")}
    model = {"MODEL_PORT": free_port()}
    stack = Stack(base_environment() | ports | model | {"COMPOSE_PROJECT_NAME": project, "HEART_DATA": str(data)})
    if also:
        stack.environment["COMPOSE_FILE"] = f"docker-compose.yaml:{also}"
    if repeats:
        stack.environment["HEART_REPEATS"] = str(repeats)
    stack.environment.pop("YES", None)
    stack.make("destroy", "YES=1")
    # A password may well begin like an option.
    awkward = "".join(f"{page}_PASSWORD=-{secrets.token_urlsafe(18)}\n" for page in ("AIRFLOW", "MLFLOW", "PGADMIN"))
    (ROOT / f".credentials-{project}").write_text(awkward)
    try:
        up = stack.make("up")
        assert up.returncode == 0, up.stdout + up.stderr + stack.compose("logs", "--tail", "40")
        assert all(f"http://localhost:{port}" in up.stdout for port in ports.values())
        yield stack
    finally:
        stack.make("destroy", "YES=1")


@contextmanager
def locked(stack: Stack, table: str) -> Iterator[None]:
    """Hold a table, so that whoever needs it waits in the middle of its work."""
    statement = f"BEGIN; LOCK TABLE heart_analysis.{table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3600)"
    command = ["docker", "compose", "exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "heart", "-c", statement]
    holding = subprocess.Popen(
        command, cwd=stack.folder, env=stack.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%' AND wait_event = 'PgSleep'"
    wait_until(lambda: stack.query(held) == [["1"]])
    try:
        yield
    finally:
        holding.kill()
        holding.wait()


def waits(stack: Stack, stage: str) -> bool:
    """Return whether a stage waits for a table."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name"
    return stack.query(f"{waiting} = 'heart-{stage}'") == [["1"]]


def content(query: Callable[[str], Any], batch: str) -> dict[str, list[str]]:
    """Return what the warehouse holds of a batch, without what differs from run to run."""
    mine = f"account_id IN (SELECT account_id FROM heart_analysis.heart_fact WHERE batch = '{batch}')"
    rows = f"SELECT (to_jsonb(t) - 'load_id' - 'changed_at')::text FROM heart_analysis.{{}} t WHERE {mine} ORDER BY 1"
    tables = ("account_dim", "heart_disease_dim", "heart_fact")
    return {table: [row for (row,) in query(rows.format(table))] for table in tables}


def load_undisturbed(folder: Path, data: Path, postgres: dict[str, str], batch: str) -> dict[str, list[str]]:
    """Load a batch into a warehouse of its own, by processes, with nothing in their way; return what it then holds."""
    warehouse = Warehouse(make_warehouse(postgres))
    delivery = Delivery(folder, variables=dict(warehouse.environment))
    delivery.data.symlink_to(data)
    delivery.etl(batch)
    return content(warehouse.query, batch)

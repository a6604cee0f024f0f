"""A whole system for tests and benchmarks, under a name and on ports of its own."""

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack import state_of

from support import ROOT, base_environment


@dataclass
class Stack:
    """A running system: the variables that lead to it and the checkout that it was started from."""

    environment: dict[str, str]
    folder: Path = ROOT

    def make(self, *arguments: str, timeout: int = 800) -> "subprocess.CompletedProcess[str]":
        """Run a command of the Makefile."""
        return subprocess.run(
            ["make", *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    @property
    def credentials(self) -> dict[str, str]:
        """Return what its services are logged in to with."""
        return credentials(self.environment["COMPOSE_PROJECT_NAME"])

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

    def query(self, query: str) -> list[list[str]]:
        """Return the rows of a query in the warehouse."""
        psql = ("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "heart", "-AtF", "\t", "-c", query)
        return [line.split("\t") for line in self.compose(*psql).splitlines()]

    def airflow(self, path: str, body: dict[str, Any] | None = None, method: str | None = None, **query: Any) -> Any:
        """Ask Airflow's REST API, as its user."""
        login = {"username": "heart", "password": self.credentials["AIRFLOW_PASSWORD"]}
        token = fetch(f"{self.address('AIRFLOW')}/auth/token", login)["access_token"]
        return fetch(f"{self.address('AIRFLOW')}/api/v2/{path}?{urllib.parse.urlencode(query)}", body, token, method)

    def tables(self) -> dict[str, list[list[str]]]:
        """Return all that stages wrote into the warehouse."""
        names = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'heart_analysis' ORDER BY 1")
        return {name: self.query(f"SELECT t::text FROM heart_analysis.{name} t ORDER BY 1") for (name,) in names}


def fetch(address: str, body: dict[str, Any] | None = None, token: str = "", method: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data, headers, method=method), timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def credentials(project: str) -> dict[str, str]:
    lines = (ROOT / f".credentials-{project}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def running_stack(project: str, data: Path = ROOT / "data", repeats: int | None = None) -> Iterator[Stack]:
    """Bring a system up that takes its deliveries from a folder; remove it with its data at the end.

    repeats: of the cross-validation, where the usual number would only take longer.
    """
    ports = {f"{page}_PORT": free_port() for page in ("AIRFLOW", "MLFLOW", "PGADMIN")}
    model = {"MODEL_PORT": free_port()}
    stack = Stack(base_environment() | ports | model | {"COMPOSE_PROJECT_NAME": project, "HEART_DATA": str(data)})
    if repeats:
        stack.environment["HEART_REPEATS"] = str(repeats)
    stack.environment.pop("YES", None)
    stack.make("destroy", "YES=1")
    try:
        up = stack.make("up")
        assert up.returncode == 0, up.stdout + up.stderr + stack.compose("logs", "--tail", "40")
        assert all(f"http://localhost:{port}" in up.stdout for port in ports.values())
        yield stack
    finally:
        stack.make("destroy", "YES=1")

"""How the tests run a stage: as a process in its own environment, as `make run` does, or as a container of its image.

Both run the same tests. A container gets what the contract gives it and no more: a read-only root, no capabilities, no new
privileges, its memory, and a network only where it declares one.
"""

import itertools
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from containers import Container, container_of, docker_arguments
from processes import process_of
from stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".run" / "env"
_numbers = itertools.count()
# Seconds after which nothing more is expected to happen.
PATIENCE = 900


def declared(stage: str, variables: dict[str, Any]) -> dict[str, str]:
    """Return those of the variables that a stage declares."""
    return {name: str(value) for name, value in variables.items() if name in STAGES[stage].variables}


class ProcessRunner:
    """Runs a stage as a process."""

    def start(self, stage: str, arguments: tuple[object, ...], variables: dict[str, Any]) -> "Running":
        """Start a stage."""
        command, environment = process_of(stage, ENVIRONMENTS, declared(stage, variables))
        return Running(popen([*command, *arguments], environment))


class ContainerRunner:
    """Runs a stage as a container, as the contract describes it, on a network of the tests' own.

    `addresses` tells what is called what inside that network; folders of this machine stand for the stack's volumes.
    """

    def __init__(self, network: str, addresses: dict[str, str]) -> None:
        self.network = network
        self.addresses = addresses

    def start(self, stage: str, arguments: tuple[object, ...], variables: dict[str, Any]) -> "Running":
        """Start a stage."""
        name = f"heart-test-{os.getpid()}-{next(_numbers)}"
        container = self.container(stage, declared(stage, variables))
        command = ["docker", "run", "--rm", f"--name={name}", *docker_arguments(container), container.image, *arguments]
        return Running(popen(command, dict(os.environ)), name)

    def container(self, stage: str, given: dict[str, str]) -> Container:
        """Return a stage's container with a test's variables and folders."""
        environment = {key: self.addresses.get(value, value) for key, value in given.items()}
        volumes = {}
        if artifacts := given.get("HEART_ARTIFACTS"):
            Path(artifacts).mkdir(parents=True, exist_ok=True)
            Path(artifacts).chmod(0o777)
            volumes[artifacts] = artifacts
        for variable in ("HEART_DATA", "PGPASSFILE"):
            path = given.get(variable, "").removeprefix("file://")
            if path and Path(path).exists():
                volumes[path] = str(Path(path).resolve())
        contract = container_of(STAGES[stage])
        networks = (self.network,) if contract.networks else ()
        return replace(contract, environment=environment, volumes=volumes, networks=networks, writable=(artifacts or "",))


class Running:
    """A stage that was started."""

    def __init__(self, process: "subprocess.Popen[str]", container: str = "") -> None:
        self.process = process
        self.container = container

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end; return exit code, standard output and standard error."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGKILL)
            raise
        return self.process.returncode, out, err

    def wait_for(self, message: str) -> None:
        """Wait until the stage's log has a message; the test fails where the stage ends before."""
        for line in self.process.stderr or ():
            if f'"message": "{message}' in line:
                return
        raise AssertionError(f"it ended without {message!r}")

    def kill(self, number: int) -> None:
        """Send a signal to the stage itself."""
        if self.container:
            docker("kill", f"--signal={number}", self.container)
        else:
            os.kill(self.process.pid, number)

    def stop(self, number: int) -> tuple[int, float]:
        """Send a signal and wait for the end; return the exit code and how many seconds the stage took to be gone.

        A container's seconds are its engine's: what the command that runs it takes to say so is not the stage's.
        """
        asked = time.time()
        self.kill(number)
        code, _, _ = self.finish()
        if not self.container:
            return code, time.time() - asked
        of_it = [f"--since={asked}", f"--until={time.time()}", f"--filter=container={self.container}"]
        events = docker("events", *of_it, "--format={{.Action}} {{.TimeNano}}").splitlines()
        moments = {action: int(moment) / 1e9 for action, moment in (event.rsplit(" ", 1) for event in events)}
        return code, moments["die"] - moments["kill"]


def popen(command: list[Any], environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a command whose output is read later."""
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def docker(*arguments: str) -> str:
    """Run a docker command that must succeed; return what it printed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def inspect(name: str) -> dict[str, Any]:
    """Return what the engine knows of an image, a container or a network."""
    return json.loads(docker("inspect", name))[0]


@contextmanager
def network() -> Iterator[str]:
    """Give a network of the tests' own."""
    name = f"heart-test-{os.getpid()}-{next(_numbers)}"
    docker("network", "create", name)
    try:
        yield name
    finally:
        docker("network", "rm", name)


@contextmanager
def server(
    image: str, alias: str, port: int, on: str, options: list[str], arguments: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Run a server's container on a network; give the port of 127.0.0.1 that leads to it, and the container's name."""
    name = f"heart-test-{os.getpid()}-{next(_numbers)}"
    docker("run", "--detach", f"--name={name}", f"--network={on}", f"--network-alias={alias}", f"--publish=127.0.0.1::{port}",
           *options, image, *arguments)  # fmt: skip
    try:
        yield docker("port", name, str(port)).splitlines()[0].rsplit(":", 1)[1], name
    finally:
        docker("rm", "--force", "--volumes", name)


@contextmanager
def postgres_container(on: str, folder: Path, more: Sequence[str] = ()) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Run PostgreSQL on a network; give libpq's variables for this side, and what they are called inside the network.

    more: options of `docker run`.
    """
    password = secrets.token_hex(16)
    secret, passfile = folder / "password", folder / "pgpass"
    secret.write_text(password)
    secret.chmod(0o644)
    passfile.write_text(f"*:*:*:*:{password}\n")
    passfile.chmod(0o600)
    os.chown(passfile, 10001, 10001)  # libpq takes a password file only from its owner
    options = [f"--volume={secret}:/run/secrets/password:ro", "--env=POSTGRES_PASSWORD_FILE=/run/secrets/password", *more]
    with server("heart-base/postgres:dev", "postgres", 5432, on, options) as (port, _):
        there = {
            "PGHOST": "127.0.0.1",
            "PGPORT": port,
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            "PGPASSFILE": str(passfile),
        }
        wait_until(lambda: can_connect(there))
        yield there, {"127.0.0.1": "postgres", port: "5432"}


@contextmanager
def mlflow_container(runner: ContainerRunner, postgres: dict[str, str], database: str) -> Iterator[str]:
    """Run an MLflow server on a runner's network, with its registry in a database; give its address for this side."""
    options = [
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--mount=type=volume,destination=/artifacts",
        f"--volume={postgres['PGPASSFILE']}:/run/secrets/pgpass:ro",
        "--env=PGPASSFILE=/run/secrets/pgpass",
        f"--env=MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://postgres@postgres:5432/{database}",
    ]
    with server("heart/mlflow:dev", "mlflow", 5000, runner.network, options) as (port, container):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy")
        runner.addresses[address] = "http://mlflow:5000"
        yield address


def can_connect(environment: dict[str, str]) -> bool:
    """Return whether PostgreSQL takes connections."""
    import psycopg2

    import servers

    try:
        servers.connect(environment).close()
        return True
    except psycopg2.OperationalError:
        return False


def wait_until(condition: Any, pause: float = 0.25) -> None:
    """Poll until something is true, with a pause between looks in seconds; the test fails where it doesn't come true.

    How long that may take is not what is tested: machines differ by a factor of ten.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)

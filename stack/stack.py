#!/usr/bin/env python3
"""Bring the whole system up and down: Airflow, MLflow, PostgreSQL and pgAdmin under docker compose.

    stack/stack.py up        credentials, missing images, start, wait until everything is healthy
    stack/stack.py down      stop it; data stay
    stack/stack.py destroy   stop it and remove its data and credentials, after asking (YES=1 answers)

COMPOSE_PROJECT_NAME names another stack beside this one; AIRFLOW_PORT, MLFLOW_PORT and PGADMIN_PORT move its pages.
"""

import argparse
import base64
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CREDENTIALS = ROOT / ".credentials"
PROJECT = os.environ.get("COMPOSE_PROJECT_NAME", "heart")
READY_SECONDS = 600
# What is logged in to with a password; a role's is the password of the database role of that name.
ROLES = ("POSTGRES", "AIRFLOW", "MLFLOW", "HEART_LOAD", "HEART_TRAIN", "HEART_EVALUATE", "HEART_PREDICT", "HEART_ANALYST")
PAGES = (
    ("AIRFLOW", 8080, "AIRFLOW_PASSWORD", "heart"),
    ("MLFLOW", 600, "", ""),
    ("PGADMIN", 5050, "PGADMIN_PASSWORD", "heart@example.com"),
)


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("up", "down", "destroy"))
    what = parser.parse_args().what
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        sys.exit("no Docker engine answers; `make docker-engine` installs and starts one on Debian and Ubuntu")
    {"up": up, "down": down, "destroy": destroy}[what]()


def up() -> None:
    """Start everything and wait until it is healthy; print where it is."""
    started = time.monotonic()
    complete_credentials()
    images = compose("config", "--images").split()
    if missing := sorted(
        {name for name in images if subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode}
    ):
        print(f"making {len(missing)} missing images", flush=True)
        if subprocess.run([sys.executable, str(ROOT / "images" / "build.py")]).returncode:
            sys.exit(1)
    with subprocess.Popen(
        ["docker", "compose", "up", "--detach", "--remove-orphans"], cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as starting:  # fmt: skip
        follow(starting, started)
    print(f"\nready after {time.monotonic() - started:.0f} s\n")
    for name, port, password, user in PAGES:
        address = f"http://localhost:{os.environ.get(f'{name}_PORT', port)}"
        login = f"user {user}, password {password} in .credentials" if password else "no login"
        print(f"  {name.title():8} {address:24} {login}")
    print("\n`make pipeline` runs everything once; `make down` stops the system and keeps its data")


def follow(starting: "subprocess.Popen[str]", started: float) -> None:
    """Print each service's state as it changes, until all are as they should be. Ends the program where one fails."""
    shown: dict[str, str] = {}
    while True:
        ended = starting.poll()
        services = {s["Service"]: s for s in map(json.loads, compose("ps", "--all", "--format", "json").splitlines())}
        states = {name: state_of(service) for name, service in services.items()}
        for name, state in states.items():
            if shown.get(name) != state and state not in ("created", "running"):
                print(f"{time.monotonic() - started:6.1f} s  {name:22} {state}", flush=True)
        shown = states
        failed = [name for name, state in states.items() if state.startswith(("failed", "unhealthy"))]
        if failed or ended:
            output = starting.communicate()[0] if ended else ""
            for name in failed:
                print(compose("logs", "--no-log-prefix", "--tail", "15", name))
            sys.exit(f"{', '.join(failed)} failed; its log is above\n{output}" if failed else output)
        if ended == 0 and states and all(state in ("healthy", "done") for state in states.values()):
            return
        if time.monotonic() - started > READY_SECONDS:
            waiting = ", ".join(f"{name} ({state})" for name, state in states.items() if state not in ("healthy", "done"))
            sys.exit(f"not ready after {READY_SECONDS} s: {waiting}; see `docker compose logs`")
        time.sleep(0.5)


def state_of(service: dict[str, Any]) -> str:
    """Return a service's state in a word: healthy, done, starting, failed, …."""
    if service["State"] == "exited":
        return "done" if service["ExitCode"] == 0 else f"failed with {service['ExitCode']}"
    return service["Health"] or service["State"]


def down() -> None:
    """Stop the services and what stages are still at work."""
    if left := stage_containers():
        subprocess.run(["docker", "stop", "--time", "5", *left], capture_output=True)
    sys.exit(subprocess.run(["docker", "compose", "down", "--remove-orphans"], cwd=ROOT, env=environment()).returncode)


def destroy() -> None:
    """Remove services, volumes and credentials, after asking."""
    if os.environ.get("YES") != "1":
        print(f"This removes the warehouse, MLflow's models and Airflow's history of the stack {PROJECT!r} for good.")
        if not sys.stdin.isatty() or input("Type yes to go on: ") != "yes":
            sys.exit("nothing was removed; YES=1 answers beforehand")
    if left := stage_containers():
        subprocess.run(["docker", "rm", "--force", *left], capture_output=True)
    if code := subprocess.run(
        ["docker", "compose", "down", "--volumes", "--remove-orphans"], cwd=ROOT, env=environment()
    ).returncode:
        sys.exit(code)
    if PROJECT == "heart":
        CREDENTIALS.unlink(missing_ok=True)


def stage_containers() -> list[str]:
    """Return the ids of the stages' containers, which compose does not know."""
    return docker("ps", "--all", "--quiet", "--filter", f"label=heart.project={PROJECT}").split()


def complete_credentials() -> None:
    """Generate the credentials that are not there yet, in a file that only its owner reads."""
    lines = CREDENTIALS.read_text(encoding="utf-8").splitlines() if CREDENTIALS.exists() else []
    there = {line.split("=", 1)[0] for line in lines}
    wanted = {f"{role}_DB_PASSWORD": secrets.token_urlsafe(24) for role in ROLES}
    wanted |= {name: secrets.token_urlsafe(18) for name in ("AIRFLOW_PASSWORD", "PGADMIN_PASSWORD", "BROKER_PASSWORD")}
    wanted["AIRFLOW_FERNET_KEY"] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    wanted |= {name: secrets.token_urlsafe(64) for name in ("AIRFLOW_SECRET_KEY", "AIRFLOW_JWT_SECRET")}
    missing = {name: value for name, value in wanted.items() if name not in there}
    if missing:
        descriptor = os.open(CREDENTIALS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in missing.items())
        print(f"generated {len(missing)} credentials in {CREDENTIALS.name}", flush=True)
    CREDENTIALS.chmod(0o600)


def environment() -> dict[str, str]:
    """Return what compose needs to know of this machine."""
    socket = Path("/var/run/docker.sock")
    known = {"DOCKER_GID": str(socket.stat().st_gid)} if socket.exists() else {}
    data = Path(os.environ.get("HEART_DATA", ROOT / "data")).resolve()
    return os.environ | known | {"COMPOSE_PROJECT_NAME": PROJECT, "HEART_DATA": str(data)}


def compose(*arguments: str) -> str:
    """Run docker compose; return what it printed."""
    return docker("compose", *arguments)


def docker(*arguments: str) -> str:
    """Run a docker command; end with what it said where it fails."""
    done = subprocess.run(["docker", *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Bring the whole system up and down: Airflow, MLflow, PostgreSQL and pgAdmin under docker compose.

    stack/stack.py up        credentials, missing images, start, wait until everything is healthy
    stack/stack.py down      stop it; data stay
    stack/stack.py destroy   stop it and remove its data and credentials, after asking (YES=1 answers)
    stack/stack.py rotate    new credentials for everything; restarts the services
    stack/stack.py pipeline  run everything once through Airflow, follow it, show what came of it
    stack/stack.py log load  show a stage's log of the newest run

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
sys.path[:0] = [str(ROOT / folder) for folder in ("embedded", "dags", "images")]
from engine import exists, require_engine  # noqa: E402

from stages import MLFLOW, POSTGRES, STAGES  # noqa: E402
from summary import find_report, summarise, write  # noqa: E402

PROJECT = os.environ.get("COMPOSE_PROJECT_NAME", "heart")
CREDENTIALS = ROOT / (".credentials" if PROJECT == "heart" else f".credentials-{PROJECT}")
READY_SECONDS = 600
# With what `make serve` started.
DOWN = ("docker", "compose", "--profile", "*", "down")
# What is logged in to with a password; a role's is the password of the database role of that name.
READERS = [name for name, stage in STAGES.items() if set(POSTGRES) <= set(stage.variables)]
ROLES = ("POSTGRES", "AIRFLOW", "MLFLOW", "HEART_ANALYST", *(f"HEART_{name.upper()}" for name in READERS))
# `model` is the scoring server.
MLFLOW_CLIENTS = ("model", *(name for name, stage in STAGES.items() if set(MLFLOW) <= set(stage.variables)))
PASSWORDS = ("AIRFLOW", "MLFLOW", "PGADMIN", "BROKER", *(f"MLFLOW_{name.upper()}" for name in MLFLOW_CLIENTS))
ADDRESS = "http://localhost"
PAGES = (
    ("AIRFLOW", 8080, "AIRFLOW_PASSWORD", "heart"),
    ("MLFLOW", 600, "MLFLOW_PASSWORD", "heart"),
    ("PGADMIN", 5050, "PGADMIN_PASSWORD", "heart@example.com"),
)


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("up", "down", "destroy", "rotate", "pipeline", "log"))
    parser.add_argument("stage", nargs="?", help="of which the log is wanted")
    arguments = parser.parse_args()
    require_engine()
    if arguments.what == "log":
        sys.exit(in_airflow("log", "--stage", arguments.stage or "").returncode)
    {"up": up, "down": down, "destroy": destroy, "rotate": rotate, "pipeline": pipeline}[arguments.what]()


def up() -> None:
    """Start everything and wait until it is healthy; print where it is."""
    started = time.monotonic()
    complete_credentials()
    move_deliveries()
    images = [*compose("config", "--images").split(), *(f"heart/{name}:{os.environ.get('HEART_TAG', 'dev')}" for name in STAGES)]
    if missing := sorted({name for name in images if not exists("image", name)}):
        print(f"making {len(missing)} missing images", flush=True)
        if subprocess.run([sys.executable, str(ROOT / "images" / "build.py")]).returncode:
            sys.exit(1)
    output = ROOT / ".run" / "compose-up.log"
    output.parent.mkdir(exist_ok=True)
    with output.open("w") as file, subprocess.Popen(
        ["docker", "compose", "up", "--detach", "--remove-orphans"], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        stdout=file, stderr=file,
    ) as starting:  # fmt: skip
        follow(starting, started, output)
    print(f"\nready after {time.monotonic() - started:.0f} s\n")
    for name, _, password, user in PAGES:
        address = address_of(name)
        print(f"  {name.title():8} {address:24} user {user}, password {password} in {CREDENTIALS.name}")
    print("\n`make pipeline` runs everything once; `make down` stops the system and keeps its data")


def follow(starting: "subprocess.Popen[bytes]", started: float, output: Path) -> None:
    """Print each service's state as it changes, until all are as they should be. Ends the program where one fails.

    output: the file that compose writes to.
    """
    shown: dict[str, str] = {}
    while True:
        ended = starting.poll()
        services = {s["Service"]: s for s in map(json.loads, compose("ps", "--all", "--format", "json").splitlines())}
        states = {name: state_of(service) for name, service in services.items()}
        for name, state in states.items():
            if shown.get(name) != state and state not in ("created", "running"):
                print(f"{time.monotonic() - started:6.1f} s  {name:22} {state}", flush=True)
        shown = states
        # Before compose has ended, states are also those of containers that it is about to replace.
        failed = (
            [name for name, state in states.items() if state.startswith(("failed", "unhealthy"))] if ended is not None else []
        )
        if failed or ended:
            for name in failed:
                print(compose("logs", "--no-log-prefix", "--tail", "15", name))
            sys.exit(f"{', '.join(failed)} failed; its log is above" if failed else output.read_text())
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
    compose("stop", "airflow-scheduler", "airflow-worker")  # first, so that they start no other stage
    if left := stage_containers():
        subprocess.run(["docker", "stop", "--time", "5", *left], capture_output=True)
    sys.exit(subprocess.run([*DOWN, "--remove-orphans"], cwd=ROOT, env=environment()).returncode)


def destroy() -> None:
    """Remove services, volumes and credentials, after asking."""
    if os.environ.get("YES") != "1":
        print(f"This removes the warehouse, MLflow's models and Airflow's history of the stack {PROJECT!r} for good.")
        if not sys.stdin.isatty() or input("Type yes to go on: ") != "yes":
            sys.exit("nothing was removed; YES=1 answers beforehand")
    compose("stop", "airflow-scheduler", "airflow-worker")
    if left := stage_containers():
        subprocess.run(["docker", "rm", "--force", *left], capture_output=True)
    if code := subprocess.run([*DOWN, "--volumes", "--remove-orphans"], cwd=ROOT, env=environment()).returncode:
        sys.exit(code)
    CREDENTIALS.unlink(missing_ok=True)


def rotate() -> None:
    """Give everything that is logged in to a new credential, and start it anew with that."""
    if not CREDENTIALS.exists():
        sys.exit("there are no credentials yet; make up makes them")
    old = read_credentials()
    new = new_credentials()
    # What Airflow stored under the old key is read with it, and written with the new one, at the next start.
    new["AIRFLOW_FERNET_KEY"] += "," + old["AIRFLOW_FERNET_KEY"].split(",")[0]
    compose("stop", "airflow-scheduler", "airflow-worker")  # first, so that they start no other stage
    if left := stage_containers():
        subprocess.run(["docker", "stop", "--time", "5", *left], capture_output=True)
    compose("up", "--detach", "--wait", "postgres", "pgadmin")
    # These two keep their own; what is kept elsewhere the start sets. Whatever fails from here on: once more mends it.
    admin = f"ALTER ROLE postgres PASSWORD '{new['POSTGRES_DB_PASSWORD']}'"
    compose("exec", "-T", "postgres", "psql", "--quiet", "--no-psqlrc", "-U", "postgres", "-f", "-", said=admin)
    write_credentials(new)
    setup = "exec /venv/bin/python3 /pgadmin4/setup.py update-user heart@example.com --admin"
    compose("exec", "-T", "pgadmin", "sh", "-c", f'read -r new; {setup} --password="$new"', said=new["PGADMIN_PASSWORD"] + "\n")
    compose("down")
    print(f"every credential in {CREDENTIALS.name} is new; starting with them", flush=True)
    up()


def pipeline() -> None:
    """Run both DAGs, follow them, and show the summary; ends with 1 where a stage failed."""
    known = {"batch": os.environ.get("BATCH", "").split(), "dialect": os.environ.get("DIALECT", "uci")}
    force = {"force": True} if os.environ.get("FORCE") else {}
    models: dict[str, object] = {}
    if batches := os.environ.get("TRAINING_BATCH"):
        models["training_batch"] = batches
    for name in ("SEED", "REPEATS"):
        if value := os.environ.get(name):
            models[name.lower()] = int(value)
    conf = {"etl_dag": known | force, "ml_dag": models | force}
    followed = in_airflow("follow", "--conf", json.dumps(conf), stdout=subprocess.PIPE)
    if followed.returncode:
        sys.exit(followed.returncode)
    run = json.loads(followed.stdout.splitlines()[-1])
    counts = "SELECT row_to_json(c) FROM heart_analysis.warehouse_counts c"
    rows = json.loads(compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "heart", "-Atc", counts))
    document = summarise(run["events"], rows, run["seconds"])
    state = ROOT / ".run"
    state.mkdir(exist_ok=True)
    write(document, state / "summary.json")
    places = {"summary": str(state / "summary.json"), "runs": address_of("AIRFLOW"), "models": address_of("MLFLOW")}
    if report := find_report(run["events"]):
        volume = f"--volume={PROJECT}_artifacts:/artifacts:ro"
        (state / "report.html").write_text(
            docker("run", "--rm", volume, "--entrypoint=cat", "heart/base:dev", f"/artifacts/{report}")
        )
        places = {"report": str(state / "report.html"), **places}
    in_airflow("show", input=json.dumps({"summary": document, "places": places}))
    sys.exit(1 if document["failures"] else 0)


def in_airflow(*arguments: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    """Run stack/pipeline.py in the api-server's container, where Airflow's API and the libraries are at hand."""
    terminal = [] if sys.stdout.isatty() and not how else ["-T"]
    command = ["docker", "compose", "exec", *terminal, "airflow-apiserver", "python", "/stack/pipeline.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), text=True, **how)


def address_of(page: str) -> str:
    """Return the address of one of the system's pages."""
    (port,) = [port for name, port, _, _ in PAGES if name == page]
    return f"{ADDRESS}:{os.environ.get(f'{page}_PORT', port)}"


def move_deliveries() -> None:
    """Let the volume of deliveries name the folder that is wanted now: an existing one keeps the folder of its first use."""
    volume = f"{PROJECT}_data"
    if exists("volume", volume):
        options = json.loads(docker("volume", "inspect", volume))[0]["Options"] or {}
        if options.get("device") != environment()["HEART_DATA"]:
            compose("down")
            docker("volume", "rm", volume)  # only the name of a folder of this machine


def stage_containers() -> list[str]:
    """Return the ids of the stages' containers, which compose does not know."""
    return docker("ps", "--all", "--quiet", "--filter", f"label=heart.project={PROJECT}").split()


def complete_credentials() -> None:
    """Generate the credentials that are not there yet, in a file that only its owner reads."""
    there = read_credentials()
    missing = {name: value for name, value in new_credentials().items() if name not in there}
    if "POSTGRES_DB_PASSWORD" in missing and exists("volume", f"{PROJECT}_postgres"):
        sys.exit(f"{CREDENTIALS.name} is gone, but the database that it opens is there; bring it back, or make destroy")
    if missing:
        write_credentials(there | missing)
        print(f"generated {len(missing)} credentials in {CREDENTIALS.name}", flush=True)
    CREDENTIALS.chmod(0o600)


def new_credentials() -> dict[str, str]:
    """Return a new value for every credential that there must be."""
    wanted = {f"{role}_DB_PASSWORD": secrets.token_urlsafe(24) for role in ROLES}
    wanted |= {f"{name}_PASSWORD": secrets.token_urlsafe(18) for name in PASSWORDS}
    wanted["AIRFLOW_FERNET_KEY"] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    wanted |= {name: secrets.token_urlsafe(64) for name in ("AIRFLOW_SECRET_KEY", "AIRFLOW_JWT_SECRET", "MLFLOW_SECRET_KEY")}
    return wanted


def read_credentials() -> dict[str, str]:
    """Return the credentials that there are."""
    lines = CREDENTIALS.read_text(encoding="utf-8").splitlines() if CREDENTIALS.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line)


def write_credentials(credentials: dict[str, str]) -> None:
    """Write the file anew: whole or not at all, and for nobody else to read."""
    new = CREDENTIALS.with_name(f"{CREDENTIALS.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in credentials.items())
    new.replace(CREDENTIALS)


def environment() -> dict[str, str]:
    """Return what compose needs to know of this machine."""
    socket = Path(os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or "/var/run/docker.sock")
    known = {"DOCKER_SOCKET": str(socket), "DOCKER_GID": str(socket.stat().st_gid)} if socket.exists() else {}
    data = Path(os.environ.get("HEART_DATA", ROOT / "data")).resolve()
    known |= {"COMPOSE_PROJECT_NAME": PROJECT, "HEART_DATA": str(data), "HEART_CREDENTIALS": str(CREDENTIALS)}
    return os.environ | known


def compose(*arguments: str, said: str | None = None) -> str:
    """Run docker compose; return what it printed. said: what it reads from its standard input."""
    return docker("compose", *arguments, said=said)


def docker(*arguments: str, said: str | None = None) -> str:
    """Run a docker command; end with what it said where it fails."""
    done = subprocess.run(["docker", *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, input=said)
    if done.returncode:
        sys.exit(f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; a run that was started goes on in Airflow")

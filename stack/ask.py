#!/usr/bin/env python3
"""Ask and look after the models: those of the stack where it runs, else those that `make run` left.

stack/ask.py predict --age 54 --sex 1 --cp 4   what the champion says of one person
stack/ask.py history                           which version was the champion when
stack/ask.py rollback                          the previous champion takes its place again
stack/ask.py serve                             the champion over HTTP (in the stack only)
stack/ask.py quarantine                        which records could not be loaded, and why
stack/ask.py erase CLE-0001                    forget a person, in the warehouse and in every file
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import erasure
from stack import ADDRESS, PROJECT, ROOT, compose, docker, environment

from summary import answer, erased, still_delivered

HISTORY = """
SELECT version, date_trunc('minute', since) AS since, coalesce(date_trunc('minute', until)::text, 'now') AS until, decision,
    reason
FROM heart_analysis.champion_history
"""
QUARANTINE = """
SELECT batch, file, line, account_id, column_name AS column, reason FROM heart_analysis.quarantine_current ORDER BY 1, 2, 3
"""
EXAMPLE = '{"dataframe_records": [{"age": 54, "sex": 1, "cp": 4, "thalach": 140, "exang": 1, "oldpeak": 1.5}]}'


def main() -> None:
    """Do what is asked where the models are."""
    if len(sys.argv) < 2 or sys.argv[1] not in ("predict", "history", "rollback", "serve", "quarantine", "erase"):
        sys.exit(__doc__)
    what, *arguments = sys.argv[1:]
    if what == "predict" and not arguments:
        sys.exit('of whom? make predict ARGS="--age 54 --sex 1 --cp 4"; ARGS=--help lists the findings')
    if what == "erase" and not (len(arguments) == 1 and arguments[0].strip()):
        sys.exit("whom? make erase ID=CLE-0001")
    if not runs():
        if what == "serve":
            sys.exit("the champion is served by the stack; start it: make up")
        os.chdir(ROOT)
        subprocess.run([sys.executable, "embedded/environments.py", "run"], check=True)
        python = ".run/env/embedded/bin/python"
        os.execv(python, [python, "embedded/answers.py", what, *arguments])
    if what in ("history", "quarantine"):
        print(warehouse("-c", HISTORY if what == "history" else QUARANTINE), end="")
    elif what == "serve":
        serve()
    elif what == "erase":
        erase(arguments[0])
    else:
        stage = ("predict", *arguments) if what == "predict" else ("evaluate", "--rollback", "--run", "by-hand")
        command = [sys.executable, str(ROOT / "images" / "run.py"), *stage]
        sys.exit(answer(subprocess.run(command, capture_output=True, text=True)))


def warehouse(*arguments: str, said: str | None = None) -> str:
    """Run psql in the warehouse, as its owner; return what it printed."""
    return compose(
        "exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "heart", "-v", "ON_ERROR_STOP=1", *arguments, said=said
    )


def erase(person: str) -> None:
    """Erase a person everywhere, unless a delivery would bring them back."""
    python = ("--entrypoint=python", f"heart/base:{os.environ.get('HEART_TAG', 'dev')}", "/stack/erasure.py")
    if found := list(erasure.lines_with(person, Path(environment()["HEART_DATA"]))):
        sys.exit(still_delivered(found))
    # By standard input: arguments of a process can be seen by others.
    name = person.replace("'", "''")
    statement = f"SELECT * FROM heart_analysis.erase('{name}');\n"  # noqa: S608 - psql binds no values
    table = warehouse("-qAt", "-f", "-", said=statement)
    counts = {place: int(count) for place, count in (line.split("|") for line in table.split())}
    folders = {"artifacts": "/artifacts", "mlflow": "/mlflow"}
    mounts = [f"--volume={PROJECT}_{volume}:{folder}" for volume, folder in folders.items()]
    command = ["run", "--rm", "--interactive", "--network=none", f"--volume={ROOT / 'stack'}:/stack:ro", *mounts]
    print(erased(counts | json.loads(docker(*command, *python, said=person))))


def runs() -> bool:
    """Return whether the stack's database runs."""
    label = f"label=com.docker.compose.project={PROJECT}"
    command = ["docker", "ps", "--quiet", "--filter", label, "--filter", "label=com.docker.compose.service=postgres"]
    try:
        return bool(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    except FileNotFoundError:
        return False


def serve() -> None:
    """Start the scoring server, wait until it answers, and say how it is asked."""
    command = ["docker", "compose", "--profile", "serve", "up", "--detach", "--wait", "model"]
    if code := subprocess.run(command, cwd=ROOT, env=environment()).returncode:
        sys.exit(code)
    address = f"{ADDRESS}:{os.environ.get('MODEL_PORT', 5001)}"
    print(f"the champion answers at {address}/invocations, and so will the next one:\n")
    print(f"  curl -H 'Content-Type: application/json' {address}/invocations -d '{EXAMPLE}'")
    print("\n`make down` stops it with the rest")


if __name__ == "__main__":
    main()

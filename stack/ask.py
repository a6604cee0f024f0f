#!/usr/bin/env python3
"""Ask and look after the models: those of the stack where it runs, else those that `make run` left.

stack/ask.py predict --age 54 --sex 1 --cp 4   what the champion says of one person
stack/ask.py history                           which version was the champion when
stack/ask.py rollback                          the previous champion takes its place again
stack/ask.py serve                             the champion over HTTP (in the stack only)
"""

import os
import subprocess
import sys

from stack import ADDRESS, PROJECT, ROOT, compose, environment

from summary import answer

HISTORY = """
SELECT version, date_trunc('minute', since) AS since, coalesce(date_trunc('minute', until)::text, 'now') AS until, decision,
    reason
FROM heart_analysis.champion_history
"""
EXAMPLE = '{"dataframe_records": [{"age": 54, "sex": 1, "cp": 4, "thalach": 140, "exang": 1, "oldpeak": 1.5}]}'


def main() -> None:
    """Do what is asked where the models are."""
    if len(sys.argv) < 2 or sys.argv[1] not in ("predict", "history", "rollback", "serve"):
        sys.exit(__doc__)
    what, *arguments = sys.argv[1:]
    if what == "predict" and not arguments:
        sys.exit('of whom? make predict ARGS="--age 54 --sex 1 --cp 4"; ARGS=--help lists the findings')
    if not runs():
        if what == "serve":
            sys.exit("the champion is served by the stack; start it: make up")
        os.chdir(ROOT)
        subprocess.run([sys.executable, "embedded/environments.py", "run"], check=True)
        python = ".run/env/embedded/bin/python"
        os.execv(python, [python, "embedded/models.py", what, *arguments])
    if what == "history":
        print(compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "heart", "-c", HISTORY), end="")
    elif what == "serve":
        serve()
    else:
        stage = ("predict", *arguments) if what == "predict" else ("evaluate", "--rollback", "--run", "by-hand")
        command = [sys.executable, str(ROOT / "images" / "run.py"), *stage]
        sys.exit(answer(subprocess.run(command, capture_output=True, text=True)))


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

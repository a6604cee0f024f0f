"""A run of the pipeline that is looked at by everyone who may look, while somebody has taken the worker over."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from runners import docker, wait_until
from stacks import Stack

ESCAPES = (Path(__file__).parent / "escapes.py").read_text()


class Attacked(NamedTuple):
    """A run of ml_dag that was attacked from its worker.

    stages: container → what the engine shows of it; answers: what was tried → status and message; before, after: what the engine
    had of the system around the attempts; log: the gateway's; outcome: how the run ended.
    """

    stages: dict[str, str]
    answers: dict[str, tuple[int, str]]
    before: list[str]
    after: list[str]
    log: str
    outcome: str


def attack(stack: Stack) -> Attacked:
    """Run ml_dag, look at its containers as long as they are there, and meanwhile try everything from inside the worker."""
    stack.rest()
    run = stack.trigger("ml_dag", force=True)
    stages: dict[str, str] = {}

    def look() -> bool:
        """Look at each container of a stage that is there; return whether there was one so far."""
        for container in stack.containers():
            stages.setdefault(container, subprocess.run(["docker", "inspect", container], capture_output=True, text=True).stdout)
        return bool(stages)

    at_work = ("ps", "--no-trunc", "--quiet", f"--filter=label=heart.project={stack.project}")
    wait_until(lambda: look() and docker(*at_work))
    before, stage = engine_of(stack), docker(*at_work)
    (postgres,) = docker("ps", "--no-trunc", "--quiet", f"--filter=name={stack.project}-postgres").split()
    command = ["docker", "compose", "exec", "-T", "airflow-worker", "python", "-c", ESCAPES]
    told = json.dumps({"postgres": postgres, "stage": stage})
    done = subprocess.run(command, cwd=stack.folder, env=stack.environment, input=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after, log = engine_of(stack), stack.compose("logs", "gateway")
    wait_until(lambda: look() and stack.airflow(run.path)["state"] in ("success", "failed"))
    return Attacked(stages, json.loads(done.stdout), before, after, log, stack.wait_for_run(run))


def engine_of(stack: Stack) -> list[str]:
    """Return the images, and the system's services, volumes and networks, as the engine has them."""
    mine = f"--filter=name={stack.project}"
    images = docker("images", "--no-trunc", "--format={{.Repository}} {{.Tag}} {{.ID}}", "--filter=reference=heart/*")
    services = docker("ps", "--format={{.ID}} {{.State}}", f"--filter=label=com.docker.compose.project={stack.project}")
    # Images of the same age come in any order.
    return [*sorted(images.splitlines()), services, docker("volume", "ls", mine), docker("network", "ls", mine)]

"""Whoever takes the worker over does not get the machine: the engine is reached through the gateway alone."""

import json
import subprocess
from pathlib import Path

import pytest

from runners import docker, inspect, wait_until
from stacks import Stack
from support import ROOT

pytestmark = pytest.mark.docker
ESCAPES = (Path(__file__).parent / "escapes.py").read_text()


def test_the_engines_socket_is_in_the_gateway_alone(stack, first):
    config = json.loads(stack.compose("config", "--format", "json"))["services"]
    mounted = {name for name, service in config.items() if "docker.sock" in json.dumps(service.get("volumes", []))}
    assert mounted == {"gateway"}
    neighbours = {name for name, service in config.items() if "engine" in service.get("networks", {})}
    assert neighbours == {"gateway", "airflow-worker"}, "nobody else reaches it"
    assert "ports" not in config["gateway"] and config["gateway"]["read_only"]


def test_no_escape_from_the_worker_while_the_pipeline_runs(stack, first):
    wait_until(lambda: stack.airflow("dags/ml_dag/dagRuns", state=["queued", "running"])["total_entries"] == 0, 200, 1)
    run = stack.trigger("ml_dag", force=True)
    mine = ("--no-trunc", "--quiet", f"--filter=label=heart.project={stack.project}")
    wait_until(lambda: docker("ps", *mine), 120)
    (stage,) = docker("ps", *mine).split()
    (postgres,) = docker("ps", "--no-trunc", "--quiet", f"--filter=name={stack.project}-postgres").split()
    before = engine_of(stack)

    command = ["docker", "compose", "exec", "-T", "airflow-worker", "python", "-c", ESCAPES]
    told = json.dumps({"postgres": postgres, "stage": stage})
    done = subprocess.run(command, cwd=ROOT, env=stack.environment, input=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    needed = {name: found.pop(name) for name in list(found) if name.startswith("needed")}
    assert [status for status, _ in needed.values()] == [200, 201, 204], needed
    passed = {name: answer for name, answer in found.items() if answer[0] != 403}
    assert not passed and len(found) > 70
    for name, (_, message) in found.items():
        assert message.startswith("refused by the gateway: "), name
    assert inspect(postgres)["State"]["Running"]
    assert engine_of(stack) == before
    assert "refused POST" in stack.compose("logs", "gateway")
    assert stack.wait_for_run(run) == "success"


def engine_of(stack: Stack) -> list[str]:
    """Return the images, and the stack's volumes and networks, as the engine has them."""
    mine = f"--filter=name={stack.project}"
    images = docker("images", "--no-trunc", "--format={{.Repository}} {{.Tag}} {{.ID}}", "--filter=reference=heart/*")
    # Images of the same age come in any order.
    return [*sorted(images.splitlines()), docker("volume", "ls", mine), docker("network", "ls", mine)]

"""What other orchestrators add to a stage's own work, on the same images."""

import json
import statistics
import subprocess
from collections.abc import Iterator
from typing import Any

from figures import Figure, Scale
from lab import ETL, Lab, laboratory, timed

from containers import HARDENED
from runners import declared, docker
from support import ENVIRONMENTS, ROOT, Delivery

NAMES = {"kubeflow": "Kubeflow Pipelines' local Docker runner", "dagster": "Dagster's Docker pipes"}
LABEL = "heart.bench"


def peers(scale: Scale) -> Iterator[Figure]:
    """Seconds that other orchestrators add to a stage, on the same images."""
    with laboratory() as lab:
        delivery = lab.delivery(ROOT / "data")
        bare = statistics.median([plain_docker(delivery) for _ in range(scale.times + 1)][1:])
        yield Figure("a stage beyond its own work: docker run", bare / len(ETL), "s", "nothing")
        asked = {"times": scale.times, "steps": steps(lab, delivery)}
        command = [str(ENVIRONMENTS / "bench/bin/python"), str(ROOT / "tests/bench/peers.py")]
        try:
            done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
        finally:  # neither removes what it ran
            if left := docker("ps", "--all", "--quiet", f"--filter=label={LABEL}={lab.network}").split():
                docker("rm", "--force", *left)
        assert done.returncode == 0, done.stderr
    for peer, taken in json.loads(done.stdout).items():
        whole = statistics.median(taken)
        yield Figure(f"a stage beyond its own work: {NAMES[peer]}", whole / len(ETL), "s", "docker run",
                     difference=(whole - bare) / len(ETL))  # fmt: skip


def plain_docker(delivery: Delivery) -> float:
    """Run extract, transform and load one after the other; return the seconds beyond their own work."""
    beyond = 0.0
    for stage in ETL:
        beyond += timed(delivery, stage, "cleveland", "--force")
        beyond -= json.loads((delivery.artifacts / delivery.run / stage / "cleveland/result.json").read_text())["seconds"]
    return beyond


def steps(lab: Lab, delivery: Delivery) -> list[dict[str, Any]]:
    """Return what an orchestrator must know to run the stages; each gets the variables and folders of all."""
    given = delivery.given("cleveland")
    containers = [lab.runner.container(stage, declared(stage, given)) for stage in ETL]
    shared = {
        "environment": {name: value for one in containers for name, value in one.environment.items()},
        "volumes": {here: inside for one in containers for inside, here in one.volumes.items()},
        "network": lab.network,
        "options": HARDENED | {"tmpfs": {HARDENED["tmpfs"]: ""}, "labels": {LABEL: lab.network}},
    }
    folder = delivery.artifacts / delivery.run
    return [
        shared | {"name": stage, "image": f"heart/{stage}:dev", "result": str(folder / stage / "cleveland/result.json")}
        for stage in ETL
    ]

"""Other orchestrators run the same containers: Kubeflow Pipelines' local Docker runner, and Dagster's Docker pipes.

Each in its lightest form: in one process, without services. Reads from standard input {times, steps}, a step being {name, image,
environment, volumes: {place on this machine: place inside}, network, options: of docker-py, result: its result
document}; prints {peer: seconds that all steps took together beyond the stages' own, a list}.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "true"

import docker.types
from dagster import DagsterInstance, In, Nothing, OpExecutionContext, Out, graph, op
from dagster_docker import PipesDockerClient
from kfp import dsl, local

Step = dict[str, Any]


def kubeflow(steps: list[Step], folder: str) -> Callable[[], object]:
    """Return what runs the steps one after the other with kfp.local.DockerRunner."""
    # The runner gives all containers the same; commands are what the steps differ in.
    first = steps[0]
    local.init(
        runner=local.DockerRunner(
            environment=first["environment"], mounts=mounts(first), network=first["network"], **first["options"]
        ),
        pipeline_root=folder,
    )

    def component(step: Step) -> Any:
        def stage() -> dsl.ContainerSpec:
            return dsl.ContainerSpec(image=step["image"], command=["--force"])

        stage.__name__ = step["name"]
        return dsl.container_component(stage)

    components = [component(step) for step in steps]

    @dsl.pipeline(name="stages")
    def stages() -> None:
        before = None
        for run in components:
            task = run()
            if before:
                task.after(before)
            before = task

    return stages


def dagster(steps: list[Step], _folder: str) -> Callable[[], object]:
    """Return what runs the steps one after the other as ops with Dagster's PipesDockerClient."""

    def operation(step: Step) -> Any:
        def stage(context: OpExecutionContext) -> None:
            options = {"mounts": mounts(step), "network": step["network"], **step["options"]}
            PipesDockerClient().run(context=context, image=step["image"], command=["--force"], env=step["environment"],
                                    container_kwargs=options)  # fmt: skip

        return op(name=step["name"], ins={"after": In(Nothing)} if step is not steps[0] else {}, out=Out(Nothing))(stage)

    operations = [operation(step) for step in steps]

    @graph
    def stages() -> None:
        before = None
        for run in operations:
            before = run(after=before) if before else run()

    job, instance = stages.to_job(), DagsterInstance.ephemeral()
    return lambda: job.execute_in_process(instance=instance)


def mounts(step: Step) -> list[Any]:
    """Return a step's folders as docker-py takes them."""
    return [docker.types.Mount(inside, here, type="bind") for here, inside in step["volumes"].items()]


def beyond_own(run: Callable[[], object], steps: list[Step]) -> float:
    """Run the steps; return the seconds that they took beyond the stages' own work, by the stages' own clocks."""
    began, started = time.time(), time.perf_counter()
    run()
    taken = time.perf_counter() - started
    documents = [json.loads(Path(step["result"]).read_text()) for step in steps]
    if any(datetime.fromisoformat(document["started"]).timestamp() < began - 1 for document in documents):
        raise RuntimeError("a stage has not run")
    return taken - sum(document["seconds"] for document in documents)


def main() -> None:
    """Measure both."""
    asked = json.load(sys.stdin)
    steps = asked["steps"]
    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for peer in (kubeflow, dagster):
            run = peer(steps, folder)
            run()  # the first is not counted: it imports what it needs
            found[peer.__name__] = [beyond_own(run, steps) for _ in range(asked["times"])]
    print(json.dumps(found))


if __name__ == "__main__":
    main()

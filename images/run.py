#!/usr/bin/env python3
"""Run one stage alone in its container, with the image, options and environment that the DAGs give it.

    images/run.py extract --batch cleveland         run a stage
    images/run.py extract --help                    its options
    CODE=1 images/run.py transform --batch a        with the code of this working tree instead of the image's
    SHELL_IN=1 images/run.py load                   a shell in the stage's container instead of the stage
    PRINT=1 images/run.py load --batch a            print the `docker run` command instead of running it

What the stage reads and writes is in the stack's volumes, so stages that use PostgreSQL or MLflow need `make up`.
"""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "dags"))
from engine import exists  # noqa: E402

from containers import ARTIFACTS, DATA, container_of, docker_arguments  # noqa: E402
from stages import STAGES  # noqa: E402

PROJECT = os.environ.get("COMPOSE_PROJECT_NAME", "heart")


def main() -> None:
    """Say what is missing, or become `docker run`."""
    if len(sys.argv) < 2 or sys.argv[1] not in STAGES:
        sys.exit(f"{__doc__}\nstages: {', '.join(STAGES)}")
    name, *arguments = sys.argv[1:]
    stage = STAGES[name]
    container = container_of(stage, PROJECT, os.environ.get("HEART_TAG", "dev"))
    if arguments == ["--help"]:
        container = replace(container, networks=(), volumes={})  # it needs nothing
    elif not os.environ.get("PRINT") and (
        missing := [network for network in container.networks if not exists("network", network)]
    ):
        sys.exit(
            f"{name} talks to {' and '.join(stage.networks)}, but there is no network {missing[0]}; start the services: make up"
        )
    code = os.environ.get("CODE")
    made = {"HEART_IMAGE": "working tree", "HEART_REVISION": "working tree"} if code else made_from(container.image)
    container.environment.update(made)
    options = docker_arguments(container)
    if DATA in container.volumes and not exists("volume", container.volumes[DATA]):
        # Without the stack the deliveries come straight from the folder.
        source = Path(os.environ.get("HEART_DATA", ROOT / "data")).resolve()
        options = [o.replace(f"--volume={container.volumes[DATA]}:", f"--volume={source}:") for o in options]
    if code:
        options += [f"--volume={ROOT / 'images' / name}:/stage:ro"]
        options += [
            f"--volume={path}:/heart/{path.name}:ro" for base in ("base", "ml") for path in (ROOT / "images" / base).glob("*.py")
        ]
    if os.environ.get("SHELL_IN"):
        options += ["--interactive", "--entrypoint=bash"]
        options += ["--tty"] if sys.stdin.isatty() else []
    command = ["docker", "run", "--rm", *options, container.image, *arguments]
    if os.environ.get("PRINT"):
        print(shlex.join(command))
        return
    if ARTIFACTS in container.volumes:
        make_volume(container.volumes[ARTIFACTS])
    os.execvp("docker", command)


def made_from(image: str) -> dict[str, str]:
    """Return an image's id, by which a stage knows whether its work was done by the same code, and the revision of that."""
    shown = '--format={{.Id}} {{index .Config.Labels "org.opencontainers.image.revision"}}'
    asked = subprocess.run(["docker", "image", "inspect", shown, image], capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"there is no image {image}; make it: make build-images")
    return dict(zip(("HEART_IMAGE", "HEART_REVISION"), asked.stdout.split(), strict=False))


def make_volume(volume: str) -> None:
    """Make the volume that stages share where the stack has not done so, labelled as the stack would."""
    if not exists("volume", volume):
        labels = {"com.docker.compose.project": PROJECT, "com.docker.compose.volume": volume.removeprefix(f"{PROJECT}_")}
        subprocess.run(["docker", "volume", "create", *(f"--label={k}={v}" for k, v in labels.items()), volume], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip


if __name__ == "__main__":
    main()

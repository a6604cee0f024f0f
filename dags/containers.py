"""What a stage's container is given, read from the contract: the same for the DAGs, `make run/<stage>` and the tests.

Standard library only. `container_of` names everything once; `docker_arguments` says it to the command line, `host_config`
to the engine's API, which takes nothing else through the gateway (stack/gateway.py).
"""

import os
from dataclasses import dataclass, field
from typing import Any

from stages import POSTGRES, Stage

# Nothing more than it needs: what a stage writes goes to the artifacts, PostgreSQL and MLflow, or to a /tmp that is gone
# with it. The names are those of Docker's API; an init reaps what libraries start.
HARDENED: dict[str, bool | int | str | list[str]] = {
    "init": True,
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 256,
    "tmpfs": "/tmp",  # noqa: S108 - inside the container
}
# Where the shared folders lie in every container, and a file with what a stage logs in with.
ARTIFACTS, DATA, SECRETS = "/artifacts", "/data", "/run/secrets"


@dataclass(frozen=True)
class Container:
    """One container of a stage, in names of a compose project.

    volumes: mount point → volume; writable: the mount points that are not read-only; memory as Docker writes it; cpus: how
    many of them it may fill.
    """

    image: str
    environment: dict[str, str]
    volumes: dict[str, str]
    networks: tuple[str, ...]
    memory: str
    cpus: float
    labels: dict[str, str] = field(default_factory=dict)
    writable: tuple[str, ...] = (ARTIFACTS,)


def container_of(stage: Stage, project: str = "heart", tag: str = "dev") -> Container:
    """Return a stage's container in the stack that compose runs under the name of a project."""
    services = {
        "HEART_ARTIFACTS": ARTIFACTS,
        "HEART_DATA": DATA,
        "PGHOST": "postgres",
        "PGPORT": "5432",
        "PGDATABASE": "heart",
        "PGUSER": f"heart_{stage.name}",
        "PGPASSFILE": f"{SECRETS}/pgpass",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_CREDENTIALS": f"{SECRETS}/mlflow",
    }
    volumes = {ARTIFACTS: f"{project}_artifacts"}
    if "HEART_DATA" in stage.variables:
        volumes[DATA] = f"{project}_data"
    if set(POSTGRES) <= set(stage.variables):
        volumes[SECRETS] = f"{project}_secrets_{stage.name}"
    return Container(
        image=f"heart/{stage.name}:{tag}",
        environment={name: value for name, value in services.items() if name in stage.variables},
        volumes=volumes,
        networks=tuple(f"{project}_{name}" for name in stage.networks),
        memory=stage.memory,
        # The engine refuses more than there are.
        cpus=min(stage.cpus, os.cpu_count() or 1),
        labels={"heart.project": project, "heart.stage": stage.name},
    )


def docker_arguments(container: Container) -> list[str]:
    """Return what `docker run` or `docker create` is told before the image's name."""
    arguments = []
    for name, value in HARDENED.items():
        option = f"--{name.replace('_', '-')}"
        arguments += [option] if value is True else [f"{option}={v}" for v in (value if isinstance(value, list) else [value])]
    arguments += [f"--memory={container.memory}", f"--memory-swap={container.memory}", f"--cpus={container.cpus}"]
    arguments += [f"--network={name}" for name in container.networks or ("none",)]
    for target, volume in container.volumes.items():
        arguments.append(f"--volume={volume}:{target}{'' if target in container.writable else ':ro'}")
    arguments += [f"--env={name}={value}" for name, value in container.environment.items()]
    return [*arguments, *(f"--label={name}={value}" for name, value in container.labels.items())]


def host_config(container: Container) -> dict[str, Any]:
    """Return a container's limits, mounts and network in the words of the engine's API (`HostConfig`)."""
    memory = bytes_of(container.memory)
    return {
        "Init": True,
        "ReadonlyRootfs": True,
        "CapDrop": HARDENED["cap_drop"],
        "SecurityOpt": HARDENED["security_opt"],
        "PidsLimit": HARDENED["pids_limit"],
        "Tmpfs": {HARDENED["tmpfs"]: ""},
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(container.cpus * 1_000_000_000),
        "NetworkMode": (container.networks or ("none",))[0],
        "Mounts": [
            {"Type": "volume", "Source": volume, "Target": target, "ReadOnly": target not in container.writable}
            for target, volume in container.volumes.items()
        ],
    }


def bytes_of(memory: str) -> int:
    """Return the number of bytes that Docker understands by a text such as 512m."""
    return int(memory[:-1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[memory[-1]]

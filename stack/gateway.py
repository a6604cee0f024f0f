"""The only way to the Docker engine: lets the containers of stages through, and nothing else.

The worker is the only one that reaches this server, and this server the only one that reaches the engine's socket. Whoever
may use that socket owns the machine; whoever may use this server can start, watch, stop and remove stages as dags/stages.py
declares them:

- an image is looked at only where it is a stage's;
- a container is created only where its image, environment, labels, limits, mounts and network are those of the contract;
- a container is touched only where it was created here: it carries the labels of this project's stages;
- a network is joined only where the stage declares it.

Nothing of a request is passed on as it came: method, path, query and body are understood, and written anew. What the engine
answers is. Everything else is refused with 403 and its reason, and logged. Standard library only.
"""

import contextlib
import http.client
import json
import logging
import os
import re
import socket
import sys
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

sys.path.insert(0, "/dags")
from containers import container_of, host_config
from stages import STAGES

PROJECT = os.environ.get("HEART_PROJECT", "heart")
TAG = os.environ.get("HEART_TAG", "dev")
SOCKET = "/var/run/docker.sock"
PORT = 2375

WANTED = {name: container_of(stage, PROJECT, TAG) for name, stage in STAGES.items()}
STAGE_OF = {container.image: name for name, container in WANTED.items()}
LABELS = {"heart.project", "heart.stage", "heart.dag", "heart.run", "heart.task", "heart.try"}
# What clients add to a container's creation without being asked; it is not passed on.
HARMLESS = {"AttachStdout": True, "AttachStderr": True}
# No body that is let through comes near this.
MAX_BODY_BYTES = 100_000

VERSION = r"(?P<version>/v1\.\d{1,3})"
CONTAINER = r"/containers/(?P<container>[0-9a-f]{64}|[A-Za-z0-9][A-Za-z0-9_.-]{0,200})"

log = logging.getLogger("gateway")


class Refused(Exception):
    """The request is none of the pipeline's; the message says why."""


@dataclass(frozen=True)
class Request:
    """A request as it is understood: the version prefix, the parts of its path, its query and its body."""

    version: str
    parts: dict[str, str]
    query: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Passed:
    """What is asked of the engine instead."""

    method: str
    path: str
    query: dict[str, str]
    body: Any = None


def allowed(query: dict[str, str], *names: str) -> dict[str, str]:
    """Return the query where it has no other names. Raises Refused."""
    if foreign := set(query) - set(names):
        raise Refused(f"parameter {', '.join(sorted(foreign))}")
    return query


def look_at_image(request: Request) -> Passed:
    """Let a stage's image be looked at."""
    image = urllib.parse.unquote(request.parts["image"])
    if image not in STAGE_OF:
        raise Refused(f"image {image} is no stage's")
    return Passed("GET", f"{request.version}/images/{image}/json", allowed(request.query))


def list_containers(request: Request) -> Passed:
    """List this project's stages, whatever else was asked for."""
    allowed(request.query, "all", "filters", "limit", "size", "trunc_cmd")
    mine = {"label": [f"heart.project={PROJECT}", "heart.stage", "heart.run"]}
    return Passed("GET", f"{request.version}/containers/json", {"all": "1", "filters": json.dumps(mine)})


def create(request: Request) -> Passed:
    """Let a container be created that is, in every respect, one of the contract."""
    name = allowed(request.query, "name").get("name", "")
    body = request.body
    if not isinstance(body, dict):
        raise Refused("no description of a container")
    stage = STAGE_OF.get(str(body.get("Image")))
    if stage is None:
        raise Refused(f"image {body.get('Image')} is no stage's")
    wanted = WANTED[stage]
    if not re.fullmatch(rf"{re.escape(PROJECT)}-{stage}-[A-Za-z0-9_.-]{{1,200}}", name):
        raise Refused(f"name {name!r} is no name of a container of {stage}")
    expected = host_config(wanted)
    given = body.get("HostConfig")
    if given != expected:
        differs = [key for key in {*expected, *(given or {})} if (given or {}).get(key) != expected.get(key)]
        raise Refused(f"HostConfig of {stage} is not that of the contract: {', '.join(sorted(differs))}")
    for key, value in body.items():
        if key not in ("Image", "HostConfig", "Env", "Labels") and value and HARMLESS.get(key) != value:
            raise Refused(f"{key} is not for a stage")
    return Passed(
        "POST",
        f"{request.version}/containers/create",
        {"name": name},
        {
            "Image": wanted.image,
            "Env": check_environment(stage, body.get("Env")),
            "Labels": check_labels(stage, body.get("Labels")),
            "HostConfig": expected,
        },
    )


def check_environment(stage: str, environment: Any) -> list[str]:
    """Return the environment where the stage declares each variable, and services are those of this stack."""
    if not isinstance(environment, list) or not all(isinstance(entry, str) and "=" in entry for entry in environment):
        raise Refused("Env must be a list of NAME=value")
    for name, value in (entry.split("=", 1) for entry in environment):
        if name not in STAGES[stage].variables:
            raise Refused(f"{stage} does not declare the variable {name}")
        if value != WANTED[stage].environment.get(name, value):
            raise Refused(f"the variable {name} of {stage} must be {WANTED[stage].environment[name]}")
    return environment


def check_labels(stage: str, labels: Any) -> dict[str, str]:
    """Return the labels where they are those by which the project finds its stages."""
    if not isinstance(labels, dict) or set(labels) != LABELS or not all(isinstance(value, str) for value in labels.values()):
        raise Refused(f"Labels must be {', '.join(sorted(LABELS))}")
    if (labels["heart.project"], labels["heart.stage"]) != (PROJECT, stage):
        raise Refused(f"Labels must name the project {PROJECT} and the stage {stage}")
    return labels


def stage_of(request: Request, container: str) -> str:
    """Return the stage of a container that was created here. Raises Refused where it is any other."""
    found = ask_engine(Passed("GET", f"{request.version}/containers/{container}/json", {}))
    if found is None:
        return ""  # the engine itself says that there is none
    labels = found["Config"]["Labels"] or {}
    if not set(labels) >= LABELS or labels["heart.project"] != PROJECT:
        raise Refused(f"container {container[:40]} is no stage of {PROJECT}")
    return labels["heart.stage"]


def of_a_stage(method: str, what: str, *parameters: str) -> Callable[[Request], Passed]:
    """Return what lets something be done to a container that was created here. No body is passed on."""

    def pass_on(request: Request) -> Passed:
        container = request.parts["container"]
        query = allowed(request.query, *parameters)
        stage_of(request, container)
        return Passed(method, f"{request.version}/containers/{container}{what}", query)

    return pass_on


def join_network(request: Request) -> Passed:
    """Let a container of a stage join a network that the stage declares."""
    body, network = request.body, request.parts["network"]
    if not isinstance(body, dict) or set(body) - {"Container", "EndpointConfig"} or not isinstance(body.get("Container"), str):
        raise Refused("no description of a container to connect")
    container = body["Container"]
    if not re.fullmatch(CONTAINER, f"/containers/{container}"):
        raise Refused("no id of a container")
    stage = stage_of(request, container)
    if network not in (WANTED[stage].networks if stage in WANTED else ()):
        raise Refused(f"{stage} does not declare the network {network}")
    if any((body.get("EndpointConfig") or {}).values()):
        raise Refused("EndpointConfig is not for a stage")
    return Passed("POST", f"{request.version}/networks/{network}/connect", allowed(request.query), {"Container": container})


ROUTES: list[tuple[str, str, Callable[[Request], Passed]]] = [
    ("GET", rf"(?:{VERSION})?/_ping", lambda request: Passed("GET", "/_ping", allowed(request.query))),
    ("GET", "/version", lambda request: Passed("GET", "/version", allowed(request.query))),
    ("GET", rf"{VERSION}/images/(?P<image>[a-z0-9/:._%F-]{{1,200}})/json", look_at_image),
    ("GET", rf"{VERSION}/containers/json", list_containers),
    ("POST", rf"{VERSION}/containers/create", create),
    ("GET", rf"{VERSION}{CONTAINER}/json", of_a_stage("GET", "/json")),
    ("GET", rf"{VERSION}{CONTAINER}/logs",
     of_a_stage("GET", "/logs", "stdout", "stderr", "follow", "timestamps", "tail", "since", "until")),
    ("POST", rf"{VERSION}{CONTAINER}/start", of_a_stage("POST", "/start")),
    ("POST", rf"{VERSION}{CONTAINER}/wait", of_a_stage("POST", "/wait", "condition")),
    ("POST", rf"{VERSION}{CONTAINER}/stop", of_a_stage("POST", "/stop", "t")),
    ("DELETE", rf"{VERSION}{CONTAINER}", of_a_stage("DELETE", "", "v", "force", "link")),
    ("POST", rf"{VERSION}/networks/(?P<network>[A-Za-z0-9_.-]{{1,200}})/connect", join_network),
]  # fmt: skip


class Engine(http.client.HTTPConnection):
    """A connection to the engine's socket."""

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)


def send(passed: Passed) -> http.client.HTTPResponse:
    """Ask the engine; return what it answers, still unread."""
    connection = Engine("engine")
    query = f"?{urllib.parse.urlencode(passed.query)}" if passed.query else ""
    body = None if passed.body is None else json.dumps(passed.body)
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request(passed.method, passed.path + query, body, headers)
    return connection.getresponse()


def ask_engine(passed: Passed) -> Any:
    """Return what the engine says, understood; None where it knows no such thing."""
    with send(passed) as answer:
        return json.load(answer) if answer.status == 200 else None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys stand there once: readers differ on which of two counts."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise Refused("a key stands there twice")
    return dict(pairs)


def understand(method: str, target: str, body: bytes) -> Passed:
    """Return what is asked of the engine instead of a request. Raises Refused where that is nothing."""
    path, _, query = target.partition("?")
    for wanted, pattern, judge in ROUTES:
        if method == wanted and (found := re.fullmatch(pattern, path, re.ASCII)):
            pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=10)
            parsed = json.loads(body, object_pairs_hook=once) if body else None
            parts = found.groupdict()
            return judge(Request(parts.get("version", ""), parts, once(pairs), parsed))
    raise Refused("nothing that a pipeline needs")


class Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "gateway", ""
    # A client that sends nothing more is let go; answers may take as long as a stage does.
    timeout = 60

    def answer(self) -> None:
        """Pass a request on in other words, or refuse it."""
        try:
            if "Transfer-Encoding" in self.headers or len(self.headers.get_all("Content-Length") or []) > 1:
                raise Refused("a body without one length")
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= MAX_BODY_BYTES:
                raise Refused(f"a body of {length} bytes")
            passed = understand(self.command, self.path, self.rfile.read(length))
        except (Refused, ValueError, RecursionError) as reason:
            log.warning("refused %s %.200r: %s", self.command, self.path, reason)
            self.close_connection = True
            self.reply(403, json.dumps({"message": f"refused by the gateway: {reason}"}).encode())
            return
        try:
            given = send(passed)
        except OSError as error:
            self.reply(503, json.dumps({"message": f"the Docker engine does not answer: {error}"}).encode())
            return
        with given, contextlib.suppress(ConnectionError):  # whoever asked may have gone, as a dead worker has
            self.hand_on(given)

    do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = do_PATCH = do_OPTIONS = answer  # noqa: N815 - the library's names

    def reply(self, status: int, body: bytes) -> None:
        """Send an answer of the gateway's own."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hand_on(self, given: http.client.HTTPResponse) -> None:
        """Hand the engine's answer on as it comes: a stage's log is followed through here."""
        self.send_response(given.status)
        for name in ("Content-Type", "Api-Version", "Docker-Experimental", "Ostype", "Server"):
            if value := given.getheader(name):
                self.send_header(name, value)
        bodiless = given.status in (204, 304)
        if not bodiless:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not bodiless:
            piece = given.read1(65_536)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()
            if not piece:
                return

    def log_message(self, form: str, *arguments: Any) -> None:
        """Keep the log to what was refused."""


def main() -> None:
    """Serve until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    server = ThreadingHTTPServer(("", PORT), Handler)
    log.info("stages of project %s pass, nothing else", PROJECT)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()

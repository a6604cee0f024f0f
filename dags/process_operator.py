"""Runs a stage as a process of this machine: `make run`, without Docker.

It gets the stage's own environment of packages and no other variables than the contract lets it see: what it doesn't
declare is missing, as it would be in its image.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

import operators
from operators import StageTask, find_result

IMAGES = Path(__file__).resolve().parent.parent / "images"
# Stages get this long to end by themselves after SIGTERM; they promise 3 s.
GRACE_SECONDS = 5


class ProcessOperator(StageTask):
    """Run a stage of the contract as a process; see StageTask."""

    _process: "subprocess.Popen[str] | None" = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the stage; see StageTask.conclude for what it returns and raises."""
        started = time.monotonic()
        if operators.interrupted.is_set():
            raise AirflowFailException("not started: the run was interrupted")
        self.tell("started", started)
        program = IMAGES / self.stage / f"{self.stage}.py"
        python = Path(os.environ["HEART_ENVIRONMENTS"]) / self.stage / "bin" / "python"
        self.log.info("running %s %s", python, program)
        # fmt: off
        self._process = subprocess.Popen([str(python), str(program)], env=self._environment(), text=True, errors="replace",
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        # fmt: on
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.extend(self._process.stdout), daemon=True)  # type: ignore[union-attr, arg-type]
        reader.start()
        try:
            message = ""
            for line in self._process.stderr or ():
                message = self.take(line) or message
            code = self._process.wait()
        except KeyboardInterrupt:
            operators.interrupted.set()
        finally:
            stop(self._process)
        reader.join()
        if operators.interrupted.is_set():
            raise AirflowFailException("the run was interrupted")
        said = message or f"{self.stage} ended with exit code {code} and said nothing"
        return self.conclude(context, code, find_result(output), said, started)

    def on_kill(self) -> None:
        """End the stage with the task, when Airflow ends that: on SIGTERM, from the UI, or when its time is over."""
        operators.interrupted.set()
        if self._process:
            stop(self._process)

    def _environment(self) -> dict[str, str]:
        """Return the stage's whole environment: what the contract lets it see, and what an image brings along."""
        home = Path(os.environ["HEART_ENVIRONMENTS"]) / self.stage
        around = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(map(str, shared_sources(self.stage))),
        }
        # No __pycache__ among the sources: the folder of a stage is what it is made from.
        known = os.environ | {"HEART_REVISION": revision()}
        return self.given(source_digest(self.stage), known) | around | {"PYTHONPYCACHEPREFIX": str(home / "pycache")}


def shared_sources(stage: str) -> list[Path]:
    """Return the folders with the modules that a stage shares with others, as its Dockerfile says what it is made from."""
    base = (IMAGES / stage / "Dockerfile").read_text(encoding="utf-8")
    return [IMAGES / "base", *([IMAGES / "ml"] if "=heart/ml:" in base else [])]


def revision() -> str:
    """Return the revision of this checkout, or that it is not known."""
    command = ["git", "-C", str(IMAGES), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def source_digest(stage: str) -> str:
    """Return what stands for the image's digest where there is no image: the SHA-256 of all that one is made from."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in (*shared_sources(stage), IMAGES / stage):
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def stop(process: "subprocess.Popen[str]") -> None:
    """End a process and all that it started, if it still runs: kindly, then not."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, kind)
            process.wait(GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue

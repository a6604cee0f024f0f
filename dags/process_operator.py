"""Runs a stage as a process of this machine: `make run`, without Docker.

It gets the stage's own environment of packages and no other variables than the contract lets it see: what it doesn't
declare is missing, as it would be in its image.
"""

import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

import operators
from operators import StageTask, find_result
from processes import process_of, revision, source_digest

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
        given = self.given(source_digest(self.stage), os.environ | {"HEART_REVISION": revision()})
        command, environment = process_of(self.stage, Path(os.environ["HEART_ENVIRONMENTS"]), given)
        self.log.info("running %s", shlex.join(command))
        self._process = subprocess.Popen(command, env=environment, text=True, errors="replace", stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
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

"""How a stage runs. The DAGs say what runs after what; this says how.

`StageOperator` runs a stage as a process on this machine, in the stage's own environment of packages and with no other
variables than the contract lets it see: what it doesn't declare is missing, as it would be in its image.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from stages import DONE, NOT_RETRIED, NOTHING_TO_DO, RESULT_MARKER, STAGES, Stage

IMAGES = Path(__file__).resolve().parent.parent / "images"
# Stages get this long to end by themselves after SIGTERM; they promise 3 s.
GRACE_SECONDS = 5
# Before the second try; doubled before each later one.
RETRY_DELAY = timedelta(seconds=5)

# Whoever runs the DAGs in this process can follow the stages here: each record has `event`, a dict.
progress = logging.getLogger("heart.progress")
# Set once the run is stopped: Airflow takes an interrupted task for one to try again, but nothing more shall start here.
interrupted = threading.Event()


class StageOperator(BaseOperator):
    """Run one stage of the contract; the XCom is its result document.

    Exit codes decide what follows: refused input and wrong usage fail without a retry, an unavailable dependency is
    retried with backoff, 'nothing to do' skips the task and still hands the earlier result on.
    """

    template_fields: Sequence[str] = ("batch", "run", "variables")

    def __init__(self, *, stage: str, batch: str | None = None, variables: dict[str, str] | None = None, **kwargs: Any) -> None:
        """Prepare a stage. batch: its delivery, where the stage works on one; variables: HEART_… beside the common ones."""
        contract = STAGES[stage]
        kwargs.setdefault("task_id", stage)
        kwargs.setdefault("retries", contract.retries)
        kwargs.setdefault("retry_delay", RETRY_DELAY)
        kwargs.setdefault("retry_exponential_backoff", True)
        kwargs.setdefault("execution_timeout", contract.timeout)
        kwargs.setdefault("doc_md", f"**{contract.summary}**\n\nreads {contract.reads}; writes {contract.writes}")
        super().__init__(**kwargs)
        self.stage = stage
        self.batch = batch
        self.run = "{{ run_id }}"
        self.variables = variables or {}
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the stage. Returns its result document; raises AirflowSkipException, AirflowFailException or AirflowException."""
        contract = STAGES[self.stage]
        started = time.monotonic()
        if interrupted.is_set():
            raise AirflowFailException("not started: the run was interrupted")
        self._tell("started", started)
        code, result, message = self._run_process(contract)
        if code in (DONE, NOTHING_TO_DO) and result is None:
            code, message = 1, f"{self.stage} ended with {code} but left no result document"
        if code == DONE:
            self._tell("done", started, result=result)
            return result or {}
        if code == NOTHING_TO_DO:
            context["ti"].xcom_push("return_value", result)
            self._tell("unchanged", started, result=result, message=message)
            raise AirflowSkipException(message)
        final = code in NOT_RETRIED or context["ti"].try_number > (self.retries or 0)
        self._tell("refused" if code in NOT_RETRIED else "failed" if final else "will be tried again", started, message=message)
        raise (AirflowFailException if code in NOT_RETRIED else AirflowException)(message)

    def on_kill(self) -> None:
        """End the stage with the task, when Airflow ends that: on SIGTERM, from the UI, or when its time is over."""
        interrupted.set()
        if self._process:
            stop(self._process)

    def _run_process(self, contract: Stage) -> tuple[int, dict[str, Any] | None, str]:
        """Run the stage's program; return its exit code, its result document and the last thing it said."""
        program = IMAGES / contract.name / f"{contract.name}.py"
        python = Path(os.environ["HEART_ENVIRONMENTS"]) / contract.name / "bin" / "python"
        environment = self._environment(contract)
        self.log.info("running %s %s", python, program)
        # fmt: off
        self._process = subprocess.Popen([str(python), str(program)], env=environment, text=True, errors="replace",
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        # fmt: on
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.extend(self._process.stdout), daemon=True)  # type: ignore[union-attr, arg-type]
        reader.start()
        try:
            message = ""
            for line in self._process.stderr or ():
                self.log.info("%s", line.rstrip())
                message = said(line) or message
            code = self._process.wait()
        except KeyboardInterrupt:
            interrupted.set()
        finally:
            stop(self._process)
        reader.join()
        if interrupted.is_set():
            raise AirflowFailException("the run was interrupted")
        return code, find_result(output), message or f"{contract.name} ended with exit code {code} and said nothing"

    def _environment(self, contract: Stage) -> dict[str, str]:
        """Return the variables that the stage is given: those of the contract that are known here, and no others."""
        known = {name: os.environ[name] for name in contract.variables if name in os.environ}
        known |= {name: value for name, value in self.variables.items() if value not in ("", "None")}
        known |= {"HEART_RUN": self.run, "HEART_IMAGE": source_digest(contract.name)}
        if self.batch is not None:
            known["HEART_BATCH"] = self.batch
        undeclared = set(known) - set(contract.variables)
        if undeclared:
            raise AirflowFailException(f"{contract.name} does not declare {', '.join(sorted(undeclared))}; see dags/stages.py")
        # What an image brings along: a home of the stage's own, and the modules that all stages share.
        home = Path(os.environ["HEART_ENVIRONMENTS"]) / contract.name
        around = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(IMAGES / "base")}
        # No __pycache__ among the sources: the folder of a stage is what it is made from.
        return known | around | {"PYTHONPYCACHEPREFIX": str(home / "pycache")}

    def _tell(self, state: str, started: float, **more: Any) -> None:
        event = {"stage": self.stage, "batch": self.batch, "state": state, "seconds": time.monotonic() - started, **more}
        progress.info("%s", state, extra={"event": event})


def find_result(lines: Iterable[str]) -> dict[str, Any] | None:
    """Return the result document among the lines that a stage printed, None where there is none."""
    for line in lines:
        if line.startswith(RESULT_MARKER):
            return json.loads(line.removeprefix(RESULT_MARKER))
    return None


def said(line: str) -> str:
    """Return what a line of a stage's log says: the message of a JSON line, else the line itself."""
    try:
        return json.loads(line)["message"]
    except (ValueError, TypeError, KeyError):
        return line.strip()


def source_digest(stage: str) -> str:
    """Return what stands for the image's digest where there is no image: the SHA-256 of all that one is made from."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in (IMAGES / "base", IMAGES / stage):
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

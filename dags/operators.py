"""How a stage runs. The DAGs say what runs after what; this says how, once for both ways to run.

`stage_operator` gives a task that runs a stage of the contract: as a container (container_operator.py), or, where
HEART_ENVIRONMENTS names the stages' own environments of packages, as a process of this machine (process_operator.py).
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, BaseOperatorLink, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from stages import DONE, NOT_RETRIED, NOTHING_TO_DO, RESULT_MARKER, STAGES, Stage

# Before the second try; doubled before each later one.
RETRY_DELAY = timedelta(seconds=5)

# Whoever runs the DAGs in this process can follow the stages here: each record has `event`, a dict.
progress = logging.getLogger("heart.progress")
# Set once the run is stopped: Airflow takes an interrupted task for one to try again, but nothing more shall start here.
interrupted = threading.Event()


def stage_operator(**arguments: Any) -> "StageTask":
    """Return the task that runs a stage; see StageTask for its arguments."""
    if "HEART_ENVIRONMENTS" in os.environ:
        from process_operator import ProcessOperator

        return ProcessOperator(**arguments)
    from container_operator import ContainerOperator

    return ContainerOperator(**arguments)


class RunLink(BaseOperatorLink):
    """Leads from a task to what MLflow recorded of it."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return the address of the run's page, empty where the stage has none."""
        metrics = (getattr(operator, "result", None) or {}).get("metrics") or {}
        run, experiment = metrics.get("mlflow_run_id"), metrics.get("mlflow_experiment_id")
        page = os.environ.get("HEART_MLFLOW_PAGE", "")
        return f"{page}/#/experiments/{experiment}/runs/{run}" if page and run and experiment else ""


class StageTask(BaseOperator):
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
        self.result: dict[str, Any] | None = None

    @property
    def contract(self) -> Stage:
        """Return the stage's entry in the contract."""
        return STAGES[self.stage]

    def given(self, image: str, known: dict[str, str]) -> dict[str, str]:
        """Return the variables that the stage is given: those that the contract declares, and no others.

        image: what the stage is made from; known: what this place offers. Raises AirflowFailException where a DAG gives more.
        """
        given = {name: value for name, value in known.items() if name in self.contract.variables}
        given |= {name: value for name, value in self.variables.items() if value not in ("", "None")}
        given |= {"HEART_RUN": self.run, "HEART_IMAGE": image}
        if self.batch is not None:
            given["HEART_BATCH"] = self.batch
        undeclared = set(given) - set(self.contract.variables)
        if undeclared:
            raise AirflowFailException(f"{self.stage} does not declare {', '.join(sorted(undeclared))}; see dags/stages.py")
        return given

    def conclude(
        self, context: Context, code: int, result: dict[str, Any] | None, message: str, started: float
    ) -> dict[str, Any]:
        """Turn how a stage ended into how its task ends. Returns its result document.

        Raises AirflowSkipException, AirflowFailException (never retried) or AirflowException (retried).
        """
        if code in (DONE, NOTHING_TO_DO) and result is None:
            code, message = 1, f"{self.stage} ended with {code} but left no result document"
        self.result = result
        if code == DONE:
            self.tell("done", started, result=result)
            return result or {}
        context["ti"].xcom_push("message", message)
        if code == NOTHING_TO_DO:
            context["ti"].xcom_push("return_value", result)
            self.tell("unchanged", started, result=result, message=message)
            raise AirflowSkipException(message)
        final = code in NOT_RETRIED or context["ti"].try_number > (self.retries or 0)
        self.tell("refused" if code in NOT_RETRIED else "failed" if final else "will be tried again", started, message=message)
        raise (AirflowFailException if code in NOT_RETRIED else AirflowException)(message)

    def tell(self, state: str, started: float, **more: Any) -> None:
        """Tell whoever follows what happens. started: of time.monotonic()."""
        event = {"stage": self.stage, "batch": self.batch, "state": state, "seconds": time.monotonic() - started, **more}
        progress.info("%s", state, extra={"event": event})

    def take(self, line: str) -> str:
        """Log a line of the stage's log; return what it says."""
        try:
            entry = json.loads(line)
            level, message = logging.getLevelNamesMapping()[entry.pop("level")], entry.pop("message")
        except (ValueError, TypeError, KeyError, AttributeError):
            self.log.info("%s", line)
            return line.strip()
        more = {name: value for name, value in entry.items() if name not in ("stage", "batch", "run", "time", "traceback")}
        self.log.log(level, "%s%s", message, f" {json.dumps(more)}" if more else "")
        if "traceback" in entry:
            self.log.error("%s", entry["traceback"])
        return message


def find_result(lines: Iterable[str]) -> dict[str, Any] | None:
    """Return the result document among the lines that a stage printed, None where there is none."""
    for line in lines:
        if line.startswith(RESULT_MARKER):
            return json.loads(line.removeprefix(RESULT_MARKER))
    return None


def report_failure(context: Context) -> None:
    """Say in one line what failed and why, in the task's log."""
    task, error = context["task"], context.get("exception")
    batch = getattr(task, "batch", None)
    what = f"{task.task_id}{f' of batch {batch}' if batch else ''}"
    logging.getLogger("airflow.task").error("%s failed in run %s: %s", what, context["run_id"], error)

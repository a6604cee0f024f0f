"""Heart-disease records, from CSV files as hospitals deliver them to the warehouse.

Each **batch** goes through its own chain, at the same time as the others:

1. **extract** reads the files and sets malformed lines aside,
2. **transform** joins, types and checks the records, in canonical codes,
3. **load** moves them into PostgreSQL, in one transaction.

A batch that has not changed is skipped, stage by stage. A batch that is refused fails alone: the others are loaded, and
the run still ends as failed. When anything was loaded, the asset `warehouse` says so, and `ml_dag` follows.
"""

import os

from airflow.sdk import Context, ObjectStoragePath, Param, dag, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowFailException

from assets import WAREHOUSE
from operators import StageTask, report_failure, stage_operator
from stages import STAGES


@dag(
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["heart"],
    default_args={"on_failure_callback": report_failure},
    max_active_runs=1,
    params={
        "batch": Param(
            [],
            type="array",
            items={"type": "string"},
            title="Batches",
            description="Names of deliveries; none means all there are.",
        ),
        "dialect": Param(
            "uci",
            enum=["uci", "kaggle"],
            title="Dialect",
            description="Layout and codes of the files: UCI's, or Kaggle's heart.csv.",
        ),
        "force": Param(False, type="boolean", title="Force", description="Do the work even where nothing changed."),
    },
)
def etl_dag() -> None:
    """Build the DAG: a chain of stages for each batch that is found."""

    @task
    def discover() -> list[str]:
        """Return the names of the batches to load: those asked for, or all that lie in HEART_DATA."""
        return batches_in(get_current_context())

    @task_group
    def deliver(batch: str) -> None:
        """Take one batch through its stages."""
        tasks: dict[str, StageTask] = {}
        for stage in (s for s in STAGES.values() if s.per_batch):
            variables = {"HEART_FORCE": "{{ params.force }}"}
            if "HEART_DIALECT" in stage.environment:
                variables["HEART_DIALECT"] = "{{ params.dialect }}"
            # A stage that has nothing to do says so itself; whether the next one has, only that one knows.
            tasks[stage.name] = stage_operator(stage=stage.name, batch=batch, variables=variables, trigger_rule="none_failed")
            for upstream in stage.upstream:
                tasks[upstream] >> tasks[stage.name]

    @task(outlets=[WAREHOUSE], trigger_rule="all_done_min_one_success")
    def announce() -> None:
        """Say that the warehouse changed, once for all the batches that were loaded."""

    @task(trigger_rule="one_failed", retries=0)
    def fail() -> None:
        """Fail the run where a batch failed, though what came after it went on."""
        raise AirflowFailException("at least one batch was not loaded; its own task says why")

    deliver.expand(batch=discover()) >> [announce(), fail()]


def batches_in(context: Context) -> list[str]:
    """Return the batches that the run's parameters name, or all that lie in HEART_DATA, in order.

    In UCI's layout a batch is a folder; in Kaggle's it is a CSV file. Raises AirflowFailException where there is none.
    """
    params = context["params"]
    if params["batch"]:
        return list(params["batch"])
    data = ObjectStoragePath(os.environ["HEART_DATA"])
    if not data.is_dir():
        raise AirflowFailException(f"{data}: no such folder; HEART_DATA must name the folder with the batches")
    if params["dialect"] == "kaggle":
        found = sorted(p.stem for p in data.iterdir() if p.is_file() and p.suffix == ".csv")
    else:
        found = sorted(p.name for p in data.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
    if not found:
        what = "a CSV file" if params["dialect"] == "kaggle" else "a folder with account_raw.csv and heart_raw.csv"
        raise AirflowFailException(f"{data}: no batch there; put {what} into it for each delivery")
    return found


etl_dag()

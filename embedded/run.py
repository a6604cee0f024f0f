"""Run the whole pipeline on this machine, without Docker: the DAGs of dags/, in this process, through Airflow itself.

Stages run as processes, each in its own environment; PostgreSQL and MLflow are real. All state is kept in `.run/`, so a
second run does only what is new. Ends with a table, `.run/summary.json` and `.run/report.html`.
"""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import servers
import summary

ARTIFACTS = servers.STATE / "artifacts"
AIRFLOW_LOG = servers.LOGS / "airflow.log"


@click.command("make run", help=__doc__)
@click.option("--data", envvar="DATA", show_envvar=True, type=click.Path(exists=True, path_type=Path), show_default="data",
              default=servers.ROOT / "data", help="Folder of batches, or one file in Kaggle's layout.")  # fmt: skip
@click.option("--dialect", envvar="DIALECT", show_envvar=True, type=click.Choice(("uci", "kaggle")), default="uci",
              show_default=True, help="Layout and codes of the data.")  # fmt: skip
@click.option("--batch", "batches", envvar="BATCH", show_envvar=True, multiple=True, help="Only this batch; may be given again.")
@click.option("--training-batch", envvar="TRAINING_BATCH", show_envvar=True, default="",
              help="Batches to train on; default: the one with the most diagnosed people.")  # fmt: skip
@click.option(
    "--seed", envvar="SEED", show_envvar=True, default=1989, show_default=True, help="Fixes folds, models and resampling."
)
@click.option("--repeats", envvar="REPEATS", show_envvar=True, default=10, show_default=True, type=click.IntRange(1, 100),
              help="How often cross-validation is repeated with other folds.")  # fmt: skip
@click.option("--force", envvar="FORCE", show_envvar=True, is_flag=True, help="Do the work even where nothing changed.")
def run(data: Path, dialect: str, batches: tuple[str, ...], training_batch: str, seed: int, repeats: int, force: bool) -> None:
    """Run the command: see the module's docstring."""
    data = data.resolve()
    if data.is_file():
        if dialect != "kaggle":
            raise click.UsageError(
                f"{data} is one file, and only Kaggle's layout is: add DIALECT=kaggle, or name a folder of batches"
            )
        if data.suffix != ".csv":
            raise click.UsageError(f"{data} must be a CSV file, with a name that ends in .csv")
        data, batches = data.parent, (data.stem,)
    elif (data / "heart_raw.csv").exists() or (data / "account_raw.csv").exists():
        raise click.UsageError(
            f"{data} is itself a batch: add BATCH={data.name}, and name the folder above it: DATA={data.parent}"
        )
    started = time.monotonic()
    servers.stop_on_signals()
    with servers.only_one(), own_console() as console:
        try:
            models = {"seed": seed, "repeats": repeats, "training_batch": training_batch}
            document = run_pipeline(console, data, dialect, list(batches), models, force, started)
        except KeyboardInterrupt:
            console.print("stopped; everything that was started has been ended, and the next run goes on from here")
            sys.exit(130)
    sys.exit(1 if document["failures"] else 0)


def run_pipeline(
    console: Console, data: Path, dialect: str, batches: list[str], models: dict[str, Any], force: bool, started: float
) -> dict[str, Any]:
    """Start the services, run both DAGs, write and show the summary; return it."""
    console.print("starting PostgreSQL and MLflow", style="dim")
    with servers.postgres() as database, servers.mlflow_server(database) as mlflow:
        os.environ |= database | servers.airflow_environment()
        os.environ |= {
            "HEART_ENVIRONMENTS": str(servers.ENVIRONMENTS),
            "HEART_ARTIFACTS": str(ARTIFACTS),
            "HEART_DATA": str(data),
            "MLFLOW_TRACKING_URI": mlflow.uri,
        }
        servers.migrate_airflow()
        follower = Follower(console)
        dags = load_dags()
        follower.listen()
        run_dag(dags["etl_dag"], {"batch": batches, "dialect": dialect, "force": force})
        if any(event["stage"] == "load" and event["state"] in ("done", "unchanged") for event in follower.events):
            # In the stack the asset sets off this DAG; here it is asked each time, and its stages skip what is done.
            mlflow.wait()
            run_dag(dags["ml_dag"], models | {"force": force, "retrain": False})
        document = summary.summarise(follower.events, count_rows(database), time.monotonic() - started)
    if not document["stages"]:
        console.print(f"[bold red]no batch was found[/] in {data}; see {AIRFLOW_LOG}", highlight=False, soft_wrap=True)
        document["failures"].append({"stage": "discover", "batch": None, "outcome": "failed", "message": f"no batch in {data}"})
    places = {"summary": str(servers.STATE / "summary.json"), "logs": str(AIRFLOW_LOG), "models": "make ui"}
    shown = servers.STATE / "report.html"
    if report := summary.find_report(follower.events):
        shutil.copyfile(ARTIFACTS / report, shown)
        places = {"report": str(shown), **places}
    elif shown.exists():
        places = {"report": f"{shown} (of an earlier run)", **places}
    summary.write(document, servers.STATE / "summary.json")
    summary.show(document, console, places)
    return document


def load_dags() -> dict[str, Any]:
    """Return the DAGs of dags/ by id. Ends the program where one can't be read."""
    from airflow.dag_processing.dagbag import DagBag

    sys.path.insert(0, str(servers.ROOT / "dags"))  # as Airflow's own processes have it
    bag = DagBag(servers.ROOT / "dags")
    if bag.import_errors:
        raise SystemExit("\n".join(f"{path}: {error}" for path, error in bag.import_errors.items()))
    return bag.dags


def run_dag(dag: Any, parameters: dict[str, Any]) -> None:
    """Run a DAG to its end in this process. Raises KeyboardInterrupt where somebody stopped it."""
    dag.test(run_conf=parameters)
    if servers.interrupted.is_set():
        raise KeyboardInterrupt


def count_rows(database: dict[str, str]) -> dict[str, int]:
    """Return the rows of the warehouse by table."""
    with contextlib.closing(servers.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM heart_analysis.warehouse_counts")
        (row,) = cursor.fetchall()
        return {column.name: count for column, count in zip(cursor.description or (), row, strict=True)}


class Follower(logging.Handler):
    """Shows each stage as it ends, a line each, and keeps what it said."""

    def __init__(self, console: Console) -> None:
        """Prepare to write to a console."""
        super().__init__()
        self.console = console
        self.events: list[dict[str, Any]] = []
        self._status = console.status("")

    def listen(self) -> None:
        """Take what the operators tell from now on; they are told when the run is interrupted."""
        import operators

        operators.progress.setLevel(logging.INFO)
        operators.progress.propagate = False
        operators.progress.addHandler(self)
        operators.interrupted = servers.interrupted

    def emit(self, record: logging.LogRecord) -> None:
        """Take one event."""
        event: dict[str, Any] = record.__dict__["event"]
        self.events.append(event)
        self._status.stop()
        if event["state"] == "started":
            self._status = self.console.status(f"{event['stage']:<10} {event['batch'] or ''}")
            self._status.start()
            return
        self.console.print(summary.line(event), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def own_console() -> Iterator[Console]:
    """Give a console on the real standard output, while all that Airflow and its libraries print goes to a log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    real, real_error = os.dup(1), os.dup(2)
    with AIRFLOW_LOG.open("ab") as log, os.fdopen(real, "w") as terminal:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield Console(file=terminal)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(real, 1)
            os.dup2(real_error, 2)
            os.close(real_error)


if __name__ == "__main__":
    run()

"""Ask and look after what `make run` left: models, what they say of one person, what was set aside, who is to be forgotten."""

import os
import subprocess
import sys
from pathlib import Path

import click
from rich.console import Console

import servers

sys.path.insert(0, str(servers.ROOT / "dags"))
sys.path.insert(0, str(servers.ROOT / "stack"))
import erasure

from processes import process_of, revision, source_digest
from stages import STAGES
from summary import answer, erased, history_table, quarantine_table, still_delivered

HISTORY = "SELECT row_to_json(h) FROM heart_analysis.champion_history h"
QUARANTINE = "SELECT row_to_json(q) FROM heart_analysis.quarantine_current q ORDER BY batch, file, line"


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("what", type=click.Choice(("predict", "history", "rollback", "quarantine", "erase")))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ask(what: str, arguments: tuple[str, ...]) -> None:
    """Run the command: see the module's docstring."""
    if not (servers.STATE / "postgres").exists():
        sys.exit("there are no models yet: `make run` makes the first, or `make up` and `make pipeline` in containers")
    servers.stop_on_signals()
    with servers.only_one(), servers.postgres() as database:
        if what in ("history", "quarantine"):
            statement, table = (HISTORY, history_table) if what == "history" else (QUARANTINE, quarantine_table)
            Console().print(table([row for (row,) in rows(database, statement)]))
        elif what == "erase":
            erase(database, arguments[0])
        else:
            sys.exit(answer(run_stage(database, what, arguments)))


def rows(database: dict[str, str], statement: str, values: tuple[str, ...] = ()) -> list[tuple]:
    """Return what a statement gives."""
    with servers.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def erase(database: dict[str, str], person: str) -> None:
    """Erase a person everywhere, unless a delivery would bring them back."""
    data = os.environ.get("HEART_DATA") or os.environ.get("DATA") or str(servers.ROOT / "data")
    if found := list(erasure.lines_with(person, Path(data))):
        sys.exit(still_delivered(found))
    counts = dict(rows(database, "SELECT * FROM heart_analysis.erase(%s)", (person,)))
    counts["artifacts"] = erasure.erase_artifacts(person, servers.STATE / "artifacts")
    counts["mlflow"] = erasure.erase_lines(person, servers.STATE / "mlflow")
    print(erased(counts))


def run_stage(database: dict[str, str], what: str, arguments: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    """Run the stage that answers."""
    with servers.mlflow_server(database) as mlflow:
        mlflow.wait()
        stage = "predict" if what == "predict" else "evaluate"
        known = database | {"MLFLOW_TRACKING_URI": mlflow.uri, "HEART_ARTIFACTS": str(servers.STATE / "artifacts")}
        given = {name: value for name, value in known.items() if name in STAGES[stage].variables}
        given |= {"HEART_RUN": "by-hand", "HEART_IMAGE": source_digest(stage), "HEART_REVISION": revision()}
        command, environment = process_of(stage, servers.ENVIRONMENTS, given)
        options = arguments if what == "predict" else ("--rollback",)
        return subprocess.run([*command, *options], env=environment, text=True, capture_output=True)


if __name__ == "__main__":
    ask()

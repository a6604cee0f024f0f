"""Ask and look after the models that `make run` left: what they say of one person, who was champion when, the way back."""

import subprocess
import sys

import click
from rich.console import Console

import servers

sys.path.insert(0, str(servers.ROOT / "dags"))
from processes import process_of, revision, source_digest
from stages import STAGES
from summary import answer, history_table

HISTORY = "SELECT row_to_json(h) FROM heart_analysis.champion_history h"


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("what", type=click.Choice(("predict", "history", "rollback")))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def models(what: str, arguments: tuple[str, ...]) -> None:
    """Run the command: see the module's docstring."""
    if not (servers.STATE / "postgres").exists():
        sys.exit("there are no models yet: `make run` makes the first, or `make up` and `make pipeline` in containers")
    servers.stop_on_signals()
    with servers.only_one(), servers.postgres() as database, servers.mlflow_server(database) as mlflow:
        if what == "history":
            with servers.connect(database) as connection, connection.cursor() as cursor:
                cursor.execute(HISTORY)
                Console().print(history_table([row for (row,) in cursor.fetchall()]))
            return
        mlflow.wait()
        stage = "predict" if what == "predict" else "evaluate"
        known = database | {"MLFLOW_TRACKING_URI": mlflow.uri, "HEART_ARTIFACTS": str(servers.STATE / "artifacts")}
        given = {name: value for name, value in known.items() if name in STAGES[stage].variables}
        given |= {"HEART_RUN": "by-hand", "HEART_IMAGE": source_digest(stage), "HEART_REVISION": revision()}
        command, environment = process_of(stage, servers.ENVIRONMENTS, given)
        options = arguments if what == "predict" else ("--rollback",)
        done = subprocess.run([*command, *options], env=environment, text=True, capture_output=True)
    sys.exit(answer(done))


if __name__ == "__main__":
    models()

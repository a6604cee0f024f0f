"""Run the whole pipeline through Airflow's REST API, follow it, and show what came of it. Works inside the api-server.

pipeline.py follow --conf '{"etl_dag": {…}, "ml_dag": {…}}'   start a run, a line a stage; prints its events as JSON
pipeline.py show                                              print the summary that comes as JSON on standard input
pipeline.py log --stage load                                  print a stage's log of the newest run
"""

import argparse
import contextlib
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, "/embedded")
from rich.console import Console

import summary

SERVER = "http://127.0.0.1:8080"
PASSWORD = Path("/run/secrets/admin_password")
LOGS = Path("/airflow/logs")
# How Airflow's states of a task read in the summary.
ENDED = {"success": "done", "skipped": "unchanged", "failed": "failed"}
RUN_ENDED = ("success", "failed")
POLL_SECONDS = 0.5
# A service that is restarted is back well within this.
PATIENCE_SECONDS = 60
# The scheduler starts the run that an asset sets off within a second or two; a busy machine's later.
ASSET_SECONDS = 300


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("follow", "show", "log"))
    parser.add_argument("--stage", help="of which the log is wanted")
    parser.add_argument("--conf", type=json.loads, default={}, help="parameters of each DAG")
    arguments = parser.parse_args()
    if arguments.what == "show":
        told = json.load(sys.stdin)
        summary.show(told["summary"], Console(), told["places"])
        return
    if arguments.what == "log":
        show_log(arguments.stage)
        return
    console = Console(stderr=True)
    airflow = Airflow()
    started = time.monotonic()
    try:
        events = follow_all(airflow, console, arguments.conf)
    except KeyboardInterrupt:
        sys.exit("stopped following; the run goes on in Airflow")
    print(json.dumps({"events": events, "seconds": time.monotonic() - started}))


def follow_all(airflow: "Airflow", console: Console, conf: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Run etl_dag, then the ml_dag that it sets off, or one of its own where the warehouse did not change.

    Ends the program where one of them is paused: its run would wait for ever.
    """
    for dag in ("etl_dag", "ml_dag"):
        if airflow.get(f"dags/{dag}")["is_paused"]:
            sys.exit(f"{dag} is paused; switch it on in Airflow, then say `make pipeline` again")
    run = airflow.post("dags/etl_dag/dagRuns", {"logical_date": None, "conf": conf.get("etl_dag", {})})["dag_run_id"]
    console.print(f"etl_dag {run}", style="dim", highlight=False)
    events = follow(airflow, console, "etl_dag", run)
    announced = airflow.get(f"dags/etl_dag/dagRuns/{quote(run)}/taskInstances/announce")["state"]
    if announced != "success":
        if not any(event["stage"] == "load" and event["state"] == "unchanged" for event in events):
            return events
        # Nothing new was loaded, so nothing set it off; its stages skip what is done.
        models = airflow.post("dags/ml_dag/dagRuns", {"logical_date": None, "conf": conf.get("ml_dag", {})})["dag_run_id"]
    elif conf.get("ml_dag"):
        # The run that the asset sets off has no parameters; one with them follows it.
        follow(airflow, console, "ml_dag", set_off_by(airflow, run), quiet=True)
        models = airflow.post("dags/ml_dag/dagRuns", {"logical_date": None, "conf": conf["ml_dag"]})["dag_run_id"]
    else:
        models = set_off_by(airflow, run)
    console.print(f"ml_dag {models}", style="dim", highlight=False)
    return events + follow(airflow, console, "ml_dag", models)


def set_off_by(airflow: "Airflow", run: str) -> str:
    """Return the run of ml_dag that the asset of a run of etl_dag set off. Ends the program where there is none in time."""
    deadline = time.monotonic() + ASSET_SECONDS
    while time.monotonic() < deadline:
        for candidate in airflow.get("dags/ml_dag/dagRuns", order_by="-run_after", limit=10)["dag_runs"]:
            path = f"dags/ml_dag/dagRuns/{quote(candidate['dag_run_id'])}/upstreamAssetEvents"
            if any(event["source_run_id"] == run for event in airflow.get(path)["asset_events"]):
                return candidate["dag_run_id"]
        time.sleep(POLL_SECONDS)
    sys.exit(f"the asset did not set off ml_dag within {ASSET_SECONDS} s; is the scheduler healthy?")


def follow(airflow: "Airflow", console: Console, dag: str, run: str, quiet: bool = False) -> list[dict[str, Any]]:
    """Return how each stage of a run ended, after printing a line for each as it did."""
    events: dict[tuple[str, int], dict[str, Any]] = {}
    path = f"dags/{dag}/dagRuns/{quote(run)}"
    while True:
        state = airflow.get(path)["state"]  # before the tasks: what ended before the run did is seen
        for task in airflow.tasks(f"{path}/taskInstances"):
            key = (task["task_id"], task["map_index"])
            if key in events or task["state"] not in ENDED:
                continue
            event = airflow.event(path, task)
            events[key] = event
            if event["stage"] and not quiet:
                console.print(summary.line(event), highlight=False, soft_wrap=True)
        if state in RUN_ENDED:
            # A task of no stage counts where it failed by itself; `fail` only repeats what a stage said.
            return [event for event in events.values() if event["stage"]] + [
                event | {"stage": key[0]}
                for key, event in events.items()
                if not event["stage"] and event["state"] == "failed" and key[0] != "fail"
            ]
        time.sleep(POLL_SECONDS)


def show_log(stage: str) -> None:
    """Print what a stage's tasks logged in the newest run, one batch after the other."""
    logs = list(LOGS.glob(f"dag_id=*/run_id=*/task_id=*{stage}/**/attempt=*.log"))
    if not logs:
        sys.exit(f"{stage} has not run yet")
    newest = max(logs, key=lambda path: path.stat().st_mtime).relative_to(LOGS).parts[:3]
    for log in sorted(LOGS.joinpath(*newest).rglob("attempt=*.log")):
        print(log.relative_to(LOGS))
        for line in log.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that is just being written
                entry = json.loads(line)
                print(f"{entry['timestamp'][11:19]} {entry['level']:8} {entry['event']}")


class Airflow:
    """Airflow's REST API, as the pipeline's own user."""

    def __init__(self) -> None:
        """Log in."""
        self.token = ""
        self.token = self.post("/auth/token", {"username": "heart", "password": PASSWORD.read_text().strip()})["access_token"]

    def get(self, path: str, **query: Any) -> Any:
        """Return what is at a path."""
        return self._ask(f"{path}?{urllib.parse.urlencode(query, doseq=True)}" if query else path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a body to a path; return the answer."""
        return self._ask(path, json.dumps(body).encode())

    def tasks(self, path: str) -> list[dict[str, Any]]:
        """Return all task instances of a run, a page at a time."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(path, limit=100, offset=len(found), order_by="id")
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def event(self, path: str, task: dict[str, Any]) -> dict[str, Any]:
        """Return how a task ended, in the words of the summary. Tasks that run no stage have the stage None."""
        name = task["task_id"].rsplit(".", 1)[-1]
        entries = f"{path}/taskInstances/{quote(task['task_id'])}/xcomEntries"
        said = {key: self._xcom(f"{entries}/{key}", task["map_index"]) for key in ("return_value", "message")}
        result = said["return_value"] if isinstance(said["return_value"], dict) else None
        fields = task.get("rendered_fields") or {}
        return {
            "stage": name if "variables" in fields else None,
            "batch": fields.get("batch"),
            "state": ENDED[task["state"]],
            "seconds": task["duration"] or 0.0,
            "result": result,
            "message": said["message"] or ("its log in Airflow says why" if task["state"] == "failed" else "skipped"),
        }

    def _xcom(self, path: str, map_index: int) -> Any:
        try:
            return self.get(path, map_index=map_index, deserialize="true")["value"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        address = f"{SERVER}{path}" if path.startswith("/") else f"{SERVER}/api/v2/{path}"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as answer:  # noqa: S310
                    return json.load(answer)
            except (urllib.error.URLError, ConnectionError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise
                # A question may be asked again; what starts a run must not start two.
                if body is not None or time.monotonic() > deadline:
                    sys.exit(f"Airflow does not answer ({error}); make up starts it, docker compose logs says what it lacks")
                time.sleep(POLL_SECONDS)


def quote(name: str) -> str:
    """Return a name as a part of an address."""
    return urllib.parse.quote(name, safe="")


if __name__ == "__main__":
    main()

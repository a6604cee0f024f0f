"""Removes what stages left behind on the Docker engine: containers that ended unread, or that outlived their time.

A worker that dies leaves its stage's container; the task's next try goes on with it. Where there is no next try, the container
stays. Every stage's container carries labels (`heart.project`, `heart.stage`, …), by which this finds it.
"""

import contextlib
import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag, task

from stages import STAGES

# An ended container is left alone as long as a retry may still come to read its result.
UNREAD = timedelta(hours=1)
# A running one is stopped this long after the time in which its task, and one try that took it over, must be over.
BEYOND = timedelta(minutes=10)


@dag(schedule="@hourly", catchup=False, doc_md=__doc__, tags=["heart"], max_active_runs=1)
def housekeeping_dag() -> None:
    """Build the DAG: one task."""

    @task(retries=2)
    def reap() -> list[str]:
        """Remove leftover containers; return their names."""
        from docker import APIClient
        from docker.errors import NotFound

        client = APIClient(base_url=os.environ.get("DOCKER_HOST", "unix://var/run/docker.sock"))
        project = os.environ.get("HEART_PROJECT", "heart")
        listed = client.containers(all=True, filters={"label": [f"heart.project={project}", "heart.run"]})
        removed = []
        for found in listed:
            with contextlib.suppress(NotFound):  # its own worker was quicker
                container = client.inspect_container(found["Id"])
                if is_leftover(container, datetime.now(UTC)):
                    client.remove_container(found["Id"], force=True, v=True)
                    removed.append(container["Name"].lstrip("/"))
        return removed

    reap()


def is_leftover(container: dict[str, Any], now: datetime) -> bool:
    """Return whether nobody will come for a container any more. container: as the engine describes it."""
    state = container["State"]
    if state["Running"]:
        stage = STAGES.get(container["Config"]["Labels"]["heart.stage"])
        return stage is None or now - moment(state["StartedAt"]) > 2 * stage.timeout + BEYOND
    return now - moment(state["FinishedAt"] if state["Status"] == "exited" else container["Created"]) > UNREAD


def moment(text: str) -> datetime:
    """Return a time that the engine wrote, to the second."""
    return datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)


housekeeping_dag()

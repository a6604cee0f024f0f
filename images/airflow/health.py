"""Is a service of Airflow at work? `health.py worker`, `health.py scheduler`, …; ends with an error where it is not.

A worker is asked through the broker, as a task would be; the others by the heartbeat that the API server reads from the
database. Cheap: nothing of Airflow is imported.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.request


def main(component: str) -> None:
    """Raise unless the component of this container is healthy."""
    if component == "worker":
        from celery import Celery

        broker = subprocess.check_output(os.environ["AIRFLOW__CELERY__BROKER_URL_CMD"].split(), text=True)
        me = f"celery@{socket.gethostname()}"
        if not Celery(broker=broker).control.ping(destination=[me], timeout=5):
            sys.exit(f"{me} does not answer")
        return
    server = "127.0.0.1" if component == "metadatabase" else "airflow-apiserver"
    with urllib.request.urlopen(f"http://{server}:8080/api/v2/monitor/health", timeout=8) as answer:
        status = json.load(answer)[component]["status"]
    if status != "healthy":
        sys.exit(f"{component} is {status}")


if __name__ == "__main__":
    main(sys.argv[1])

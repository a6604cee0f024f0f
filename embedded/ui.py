"""Show the web pages of MLflow and Airflow on the state that `make run` left, until Ctrl-C.

Both listen on 127.0.0.1 only and ask for no password: whoever can log in on this machine can open them meanwhile.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import click

import servers

READY_SECONDS = 120


@click.command(help=__doc__)
@click.option("--mlflow-port", envvar="MLFLOW_PORT", show_envvar=True, default=5000, show_default=True)
@click.option("--airflow-port", envvar="AIRFLOW_PORT", show_envvar=True, default=8080, show_default=True)
def ui(mlflow_port: int, airflow_port: int) -> None:
    """Run the command: see the module's docstring."""
    servers.stop_on_signals()
    try:
        with servers.only_one(), servers.postgres() as database, servers.mlflow_server(database, mlflow_port) as mlflow:
            os.environ |= servers.airflow_environment()
            servers.migrate_airflow()
            airflow = servers.ENVIRONMENTS / "embedded" / "bin" / "airflow"
            command = [str(airflow), "api-server", "--host", "127.0.0.1", "--port", str(airflow_port), "--workers", "1"]
            with (servers.LOGS / "airflow-ui.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                try:
                    reach = " ".join(
                        f"{name}={value}" for name, value in (database | {"MLFLOW_TRACKING_URI": mlflow.uri}).items()
                    )
                    print(f"stages reach the services with\n  export {reach}", flush=True)
                    mlflow.wait()
                    print(f"MLflow   {mlflow.uri}", flush=True)
                    wait_for(f"http://127.0.0.1:{airflow_port}/api/v2/version", process, log.name)
                    print(f"Airflow  http://127.0.0.1:{airflow_port}, to look at: runs are started with make run", flush=True)
                    print("Ctrl-C ends both", flush=True)
                    process.wait()
                finally:
                    servers.end_group(process)
    except KeyboardInterrupt:
        print("ended")


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: str) -> None:
    """Wait until a server answers; end the program where it doesn't."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).read()  # noqa: S310 - our own address
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit(f"no answer from {address}; see {log}")


if __name__ == "__main__":
    ui()

"""Show the web pages of MLflow and Airflow on the state that `make run` left, until Ctrl-C.

Both listen on 127.0.0.1 only and ask for no password: whoever can log in on this machine can open them meanwhile.
"""

import os
import subprocess

import click

import servers


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
            log = servers.LOGS / "airflow-ui.log"
            with log.open("wb") as output:
                process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
                try:
                    reach = " ".join(
                        f"{name}={value}" for name, value in (database | {"MLFLOW_TRACKING_URI": mlflow.uri}).items()
                    )
                    print(f"stages reach the services with\n  export {reach}", flush=True)
                    mlflow.wait()
                    print(f"MLflow   {mlflow.uri}", flush=True)
                    servers.wait_for(f"http://127.0.0.1:{airflow_port}/api/v2/version", process, log)
                    print(f"Airflow  http://127.0.0.1:{airflow_port}, to look at: runs are started with make run", flush=True)
                    print("Ctrl-C ends both", flush=True)
                    process.wait()
                finally:
                    servers.end_group(process)
    except KeyboardInterrupt:
        print("ended")


if __name__ == "__main__":
    ui()

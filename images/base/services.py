"""The two services that stages talk to: the warehouse in PostgreSQL and the MLflow server.

Where one of them can't be reached, at the beginning or in the middle, a stage ends with DependencyUnavailable and may
be tried again. The clients are imported where they are used: each image has only those that it needs.
"""

import configparser
import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from stage import DependencyUnavailable, InputRefused

if TYPE_CHECKING:
    import mlflow
    import pandas as pd
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

# Variables that libpq reads by itself, and their meaning.
POSTGRES = {
    "PGHOST": "host of the warehouse, or the folder of its socket",
    "PGPORT": "its port",
    "PGDATABASE": "its name",
    "PGUSER": "who the stage is there",
    "PGPASSFILE": "file with the password, in PostgreSQL's own format",
}
MLFLOW = {
    "MLFLOW_TRACKING_URI": "address of the MLflow server",
    "MLFLOW_CREDENTIALS": "file with the login there, in the format of ~/.mlflow/credentials; none where there is no login",
}

MODEL_NAME = "heart-disease"

# Where the other end of a connection is gone without a word (a container killed with data under way, a cable pulled), TCP
# says so after two hours unless it is asked for more, and until then a session keeps its locks: whoever tries again waits.
# So both ends look after 10 s of silence, every 5 s, 4 times; the server looks while it works or waits for a lock too.
GONE: dict[str, Any] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4}
GONE_ON_THE_SERVER = (
    " ".join(f"-c tcp_{name}={value}" for name, value in GONE.items()) + " -c client_connection_check_interval=10s"
)


@contextlib.contextmanager
def warehouse(stage: str) -> "Iterator[Connection]":
    """Give a connection to the warehouse that libpq's variables name: committed at the end, rolled back on an error.

    Raises DependencyUnavailable where it can't be reached, breaks off, has no room, or lacks the tables of sql/.
    """
    import psycopg2

    try:
        connection = psycopg2.connect(application_name=f"heart-{stage}", connect_timeout=10, options=GONE_ON_THE_SERVER, **GONE)
        # Closed without a commit it is rolled back by the server, which works for a connection that is broken too.
        with contextlib.closing(connection):
            yield connection
            connection.commit()
    except psycopg2.OperationalError as error:
        # Beneath the message there may stand the line of a file that was sent.
        message = error.diag.message_primary or " ".join(str(error).split())
        raise DependencyUnavailable(f"PostgreSQL: {message}; check PGHOST and that it runs, then try again") from error
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName) as error:
        message = str(error).splitlines()[0]
        raise DependencyUnavailable(f"PostgreSQL: {message}; apply the files of sql/ first") from error


def read_frame(cursor: "Cursor", query: str) -> "pd.DataFrame":
    """Return what a query gives, read with COPY: text columns as str, numbers as int64 or float64, NULL as NaN."""
    import pandas as pd

    buffer = io.BytesIO()
    cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", buffer)
    buffer.seek(0)
    return pd.read_csv(buffer, dtype={"account_id": "str", "batch": "str"}, keep_default_na=False, na_values=[""])


@contextlib.contextmanager
def mlflow_client() -> "Iterator[mlflow.MlflowClient]":
    """Give a client of the server that MLFLOW_TRACKING_URI names, with the project's experiment as the active one.

    Raises DependencyUnavailable where that server can't be reached, at once or later.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    _log_in_to_mlflow()
    import mlflow
    import requests

    # MLflow's own lines would break the log's format; what it says as an error still comes through.
    logging.getLogger("mlflow").handlers.clear()
    logging.getLogger("mlflow").propagate = True
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        raise click.UsageError("MLFLOW_TRACKING_URI must be the http address of an MLflow server")
    try:
        mlflow.set_experiment(MODEL_NAME)
        yield mlflow.MlflowClient()
    except (mlflow.exceptions.MlflowException, requests.exceptions.RequestException) as error:
        if not _unreachable(error):
            raise
        message = str(error).split("(")[0].strip()
        raise DependencyUnavailable(f"MLflow at {uri}: {message}; check that it runs, then try again") from error


def _log_in_to_mlflow() -> None:
    """Let MLflow's client find the login of the file that MLFLOW_CREDENTIALS names; read anew each time, as it may change."""
    if path := os.environ.get("MLFLOW_CREDENTIALS"):
        login = configparser.RawConfigParser()
        login.read(path, encoding="utf-8")
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            os.environ[name] = login.get("mlflow", name, fallback="")


def _unreachable(error: BaseException | None) -> bool:
    """Return whether an error comes from a connection that failed, or a server that is not ready or knows no such login."""
    import requests

    if error is None:
        return False
    if isinstance(error, requests.exceptions.RequestException) or re.search("too many 50|error code 401", str(error)):
        return True
    return _unreachable(error.__cause__ or error.__context__)


def registered_version(client: "mlflow.MlflowClient", alias: str) -> Any:
    """Return the model version that an alias names, None where there is none."""
    import mlflow

    try:
        return client.get_model_version_by_alias(MODEL_NAME, alias)
    except mlflow.exceptions.RestException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def load_model(version: int | str) -> Any:
    """Return the scikit-learn model of a registered version. Raises InputRefused where reading it could run code."""
    import mlflow

    from estimators import TRUSTED

    uri = f"models:/{MODEL_NAME}/{version}"
    flavors = mlflow.models.get_model_info(uri).flavors
    flavor = flavors.get("sklearn", {})
    stored_as = flavor.get("serialization_format")
    # MLflow trusts what the model's own file tells it to trust, imports the loader that it names, and modules beside it.
    foreign = set(flavor.get("skops_trusted_types") or ()) - set(TRUSTED)
    foreign |= {flavors.get("python_function", {}).get("loader_module", "")} - {"mlflow.sklearn"}
    foreign |= {"code of its own" for told in flavors.values() if told.get("code")}
    if stored_as != "skops" or foreign:
        how = f"stored as {stored_as}" if stored_as != "skops" else f"made of {', '.join(sorted(foreign))}"
        raise InputRefused(
            f"model version {version} is {how}, which can run code when it is read; register one in "
            "the format skops, or give the alias to another version"
        )
    return mlflow.sklearn.load_model(uri)

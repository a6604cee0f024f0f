"""Hand each service and each stage what it logs in with: files in a volume that only it sees. Runs as root, once a start.

Reads /credentials (NAME=VALUE lines); writes below /secrets, one folder a volume. A missing credential ends the start.
"""

import json
import os
import sys
from pathlib import Path

SECRETS = Path("/secrets")
# libpq takes a password file from nobody but its owner.
ROOT, HEART, PGADMIN = 0, 10001, 5050
STAGES = ("load", "train", "evaluate", "predict")
# Who asks MLflow; `model` is the scoring server, `heart` stands for people.
MLFLOW_CLIENTS = ("train", "evaluate", "predict", "model")
MLFLOW_AUTH = """[mlflow]
database_uri = postgresql+psycopg2://mlflow@postgres/mlflow
admin_username = heart
default_permission = READ
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
# Else each request takes the time of a password's hash; a changed password restarts the server.
auth_cache_ttl_seconds = 300
"""


def main() -> None:
    """Write every file anew."""
    lines = Path("/credentials").read_text(encoding="utf-8").splitlines()
    credentials = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def credential(name: str) -> str:
        if not credentials.get(name):
            sys.exit(f".credentials: {name} is missing; `make up` adds what is missing")
        return credentials[name]

    def pgpass(user: str) -> str:
        return f"*:*:*:{user}:{credential(f'{user.upper()}_DB_PASSWORD')}\n"

    def login(client: str) -> str:
        password = credential(f"MLFLOW_{client.upper()}_PASSWORD")
        return f"[mlflow]\nmlflow_tracking_username = {client}\nmlflow_tracking_password = {password}\n"

    users = {name: credential(f"MLFLOW_{name.upper()}_PASSWORD") for name in MLFLOW_CLIENTS}
    roles = ("airflow", "mlflow", "heart_analyst", *(f"heart_{stage}" for stage in STAGES))
    broker = credential("BROKER_PASSWORD")
    files = {
        "postgres/password": (credential("POSTGRES_DB_PASSWORD"), ROOT),
        "databases/pgpass": (pgpass("postgres"), ROOT),
        **{f"databases/{role}": (credential(f"{role.upper()}_DB_PASSWORD"), ROOT) for role in roles},
        "valkey/valkey.conf": (f"requirepass {broker}\nappendonly yes\ndir /data\n", ROOT),
        "valkey/password": (broker, ROOT),
        "airflow/pgpass": (pgpass("airflow"), HEART),
        "airflow/broker_url": (f"redis://:{broker}@valkey:6379/0", HEART),
        "airflow/admin_password": (credential("AIRFLOW_PASSWORD"), HEART),
        "airflow/fernet_key": (credential("AIRFLOW_FERNET_KEY"), HEART),
        "airflow/secret_key": (credential("AIRFLOW_SECRET_KEY"), HEART),
        "airflow/jwt_secret": (credential("AIRFLOW_JWT_SECRET"), HEART),
        "mlflow/pgpass": (pgpass("mlflow"), HEART),
        "mlflow/auth.ini": (MLFLOW_AUTH, HEART),
        "mlflow/secret_key": (credential("MLFLOW_SECRET_KEY"), HEART),
        "mlflow/users": (json.dumps({"heart": credential("MLFLOW_PASSWORD"), **users}), HEART),
        "pgadmin/password": (credential("PGADMIN_PASSWORD"), PGADMIN),
        "pgadmin/analyst": (credential("HEART_ANALYST_DB_PASSWORD"), PGADMIN),
        **{f"{stage}/pgpass": (pgpass(f"heart_{stage}"), HEART) for stage in STAGES},
        **{f"{client}/mlflow": (login(client), HEART) for client in MLFLOW_CLIENTS},
    }
    for name, (content, owner) in files.items():
        path = SECRETS / name
        # Services read these while they run: a new one takes the old one's place at once.
        new = path.with_name(f".{path.name}")
        new.unlink(missing_ok=True)
        new.write_text(content, encoding="utf-8")
        os.chown(new, owner, owner)
        # PostgreSQL's and Valkey's images run as users of their own; nobody else sees their volumes.
        new.chmod(0o444 if name.startswith(("postgres/", "valkey/")) else 0o400)
        new.replace(path)
    # A new volume belongs to root.
    os.chown("/artifacts", HEART, HEART)


if __name__ == "__main__":
    main()

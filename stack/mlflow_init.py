"""Migrate MLflow's database, then make its users and what each may do; what is there is renewed.

`heart` is for people and may do everything; stages read, and those that train and judge models write.
"""

import json
from pathlib import Path

from mlflow.db import upgrade
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

DATABASE = "postgresql+psycopg2://mlflow@postgres/mlflow"
ADMIN = "heart"
WRITERS = ("train", "evaluate")

# The command `mlflow db upgrade`.
upgrade.callback(DATABASE)
store = SqlAlchemyStore()
store.init_db(DATABASE)
for name, password in json.loads(Path("/run/secrets/users").read_text(encoding="utf-8")).items():
    if store.has_user(name):
        # Also after the password was changed in .credentials.
        store.update_user(name, password)
    else:
        store.create_user(name, password, is_admin=name == ADMIN)
    if name in WRITERS:
        for resource in ("experiment", "registered_model"):
            store.grant_user_permission(name, resource, "*", "EDIT")

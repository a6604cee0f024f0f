"""Migrate MLflow's database, then make its users and what each may do; what is there is renewed.

`heart` is for people and may do everything; stages read, and those that train and judge models write.
"""

import json
from pathlib import Path

from mlflow.db import upgrade
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

DATABASE = "postgresql+psycopg2://mlflow@postgres/mlflow"
ADMIN = "heart"
WRITERS = {
    "train": {"experiment": "EDIT", "registered_model": "EDIT"},
    # It takes an alias away from a version, which counts as management.
    "evaluate": {"experiment": "EDIT", "registered_model": "MANAGE"},
}

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
    for resource, permission in WRITERS.get(name, {}).items():
        store.grant_user_permission(name, resource, "*", permission)

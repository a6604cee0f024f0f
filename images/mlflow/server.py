"""Become MLflow's server: with logins where /run/secrets tells of them (stack/credentials.py), else without."""

import os
import sys
from pathlib import Path

SECRETS = Path("/run/secrets")
command = [sys.executable, "-m", "mlflow", "server", *sys.argv[1:]]
if (SECRETS / "auth.ini").exists():
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(SECRETS / "auth.ini")
    os.environ["MLFLOW_FLASK_SERVER_SECRET_KEY"] = (SECRETS / "secret_key").read_text(encoding="utf-8")
    command += ["--app-name", "basic-auth"]
os.execv(sys.executable, command)

"""The part of the public image's behaviour that this project uses: pgAdmin in server mode, set up from variables and files.

PGADMIN_DEFAULT_EMAIL, PGADMIN_DEFAULT_PASSWORD_FILE: the first user. PGADMIN_SERVER_JSON_FILE: connections that this user
finds there. PGADMIN_LISTEN_PORT: default 80. PGADMIN_CONFIG_<NAME>: a setting of pgAdmin, as a Python literal.
"""

import os
import subprocess
import sys
from pathlib import Path

HOME = Path("/var/lib/pgadmin")


def main() -> None:
    """Write the settings, make the user and the connections where they are missing, and become the web server."""
    settings = {"SERVER_MODE": "True", "DATA_DIR": repr(str(HOME)), "LOG_FILE": "'/dev/null'", "UPGRADE_CHECK_ENABLED": "False"}
    prefix = "PGADMIN_CONFIG_"
    settings |= {name.removeprefix(prefix): value for name, value in os.environ.items() if name.startswith(prefix)}
    Path("/tmp/config_local.py").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    package = Path("/pgadmin4")
    environment = os.environ | {"PGADMIN_SETUP_EMAIL": os.environ["PGADMIN_DEFAULT_EMAIL"]}
    if not (HOME / "pgadmin4.db").exists():
        environment["PGADMIN_SETUP_PASSWORD"] = Path(os.environ["PGADMIN_DEFAULT_PASSWORD_FILE"]).read_text().strip()
        setup = [sys.executable, str(package / "setup.py")]
        subprocess.run([*setup, "setup-db"], env=environment, check=True, stdout=subprocess.DEVNULL)
        if servers := os.environ.get("PGADMIN_SERVER_JSON_FILE"):
            user = ["--user", os.environ["PGADMIN_DEFAULT_EMAIL"]]
            subprocess.run([*setup, "load-servers", servers, *user], env=environment, check=True, stdout=subprocess.DEVNULL)
        del environment["PGADMIN_SETUP_PASSWORD"]
    address = f"0.0.0.0:{os.environ.get('PGADMIN_LISTEN_PORT', '80')}"
    os.execve(sys.executable, [sys.executable, "-m", "gunicorn", "--bind", address, "--workers", "1", "--threads", "25",
                               "--chdir", str(package), "pgAdmin4:app"], environment)  # fmt: skip


if __name__ == "__main__":
    main()

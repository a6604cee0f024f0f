"""Migrate Airflow's database, then make the user and the pool that stages share; what is there is renewed.

Airflow's own commands, in one process: each would take seconds to start.
"""

from pathlib import Path

from airflow.cli.cli_parser import get_parser

PASSWORD = Path("/run/secrets/admin_password").read_text(encoding="utf-8").strip()
USER = ["--username", "heart"]

for command in (
    ["db", "migrate"],
    # What was stored with the key before the newest is written anew.
    ["rotate-fernet-key"],
    ["users", "create", *USER, "--firstname", "heart", "--lastname", "pipeline", "--role", "Admin",
     "--email", "heart@example.com", f"--password={PASSWORD}"],
    # Also after the password was changed in .credentials.
    ["users", "reset-password", *USER, f"--password={PASSWORD}"],
    ["pools", "set", "stages", "2", "Stages that may work at the same time"],
):  # fmt: skip
    arguments = get_parser().parse_args(command)
    arguments.func(arguments)

"""What every program here that works with the Docker engine asks it first. Standard library only."""

import subprocess
import sys


def require_engine() -> None:
    """End the program with what to do where no Docker engine answers."""
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if "permission denied" in asked.stderr:
        sys.exit("Docker does not let you in; join its group: sudo usermod -aG docker $USER, then log in again")
    if asked.returncode:
        sys.exit("no Docker engine answers; `make docker-engine` installs and starts one on Debian and Ubuntu")


def exists(kind: str, name: str) -> bool:
    """Return whether the engine has an image, a volume or a network of this name."""
    return subprocess.run(["docker", kind, "inspect", name], capture_output=True).returncode == 0

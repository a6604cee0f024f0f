"""What a stage's process is given where it runs on this machine without a container. Standard library only."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

IMAGES = Path(__file__).resolve().parent.parent / "images"


def process_of(stage: str, environments: Path, given: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return a stage's command and its whole environment: what it is given, and what an image would bring along.

    environments: the folder with each stage's packages.
    """
    home = environments / stage
    around = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(map(str, shared_sources(stage))),
        # No __pycache__ among the sources: the folder of a stage is what it is made from.
        "PYTHONPYCACHEPREFIX": str(home / "pycache"),
    }
    return [str(home / "bin" / "python"), str(IMAGES / stage / f"{stage}.py")], given | around


def shared_sources(stage: str) -> list[Path]:
    """Return the folders with the modules that a stage shares with others, as its Dockerfile says what it is made from."""
    base = (IMAGES / stage / "Dockerfile").read_text(encoding="utf-8")
    return [IMAGES / "base", *([IMAGES / "ml"] if "=heart/ml:" in base else [])]


def revision() -> str:
    """Return the revision of this checkout, or that it is not known."""
    command = ["git", "-C", str(IMAGES), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def source_digest(stage: str) -> str:
    """Return what stands for the image's digest where there is no image: the SHA-256 of all that one is made from."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in (*shared_sources(stage), IMAGES / stage):
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"

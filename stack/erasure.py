"""Find and erase one person in files: deliveries, what stages keep between them, and what MLflow keeps of a training.

Reads the account_id from standard input, so that it stands in no list of processes; the folders are those of the stack's
volumes. Prints how many files were changed, as JSON. Standard library only.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ARTIFACTS, MLFLOW = Path("/artifacts"), Path("/mlflow")


def word(person: str) -> "re.Pattern[bytes]":
    """Return what finds an account_id as a word of its own, the same as in sql/040_erasure.sql."""
    return re.compile(rb"(?<![A-Za-z0-9_-])" + re.escape(person.encode()) + rb"(?![A-Za-z0-9_-])")


def lines_with(person: str, folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield each CSV file below a folder, and the number of each line, that names a person."""
    wanted = word(person)
    for path in sorted(folder.rglob("*.csv")):
        with path.open("rb") as file:
            yield from ((path, number) for number, line in enumerate(file, start=1) if wanted.search(line))


def erase_artifacts(person: str, artifacts: Path) -> int:
    """Remove each file of a stage that names a person: the next run makes it anew. Returns how many."""
    found = {path for path, _ in lines_with(person, artifacts)}
    for path in found:
        path.unlink()
    return len(found)


def erase_lines(person: str, folder: Path) -> int:
    """Remove the person's lines from the files that MLflow keeps, which judge a model with the others. Returns how many files."""
    wanted = word(person)
    found = {path for path, _ in lines_with(person, folder)}
    for path in found:
        new = path.with_name(f".{path.name}")
        with path.open("rb") as old, new.open("wb") as file:
            file.writelines(line for line in old if not wanted.search(line))
        new.replace(path)
    return len(found)


if __name__ == "__main__":
    named = sys.stdin.read().strip()
    print(json.dumps({"artifacts": erase_artifacts(named, ARTIFACTS), "mlflow": erase_lines(named, MLFLOW)}))

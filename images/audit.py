#!/usr/bin/env python3
"""Compare every locked package with the database of known vulnerabilities, and list the licence of each package in the images.

Ends with 1 where a vulnerability is known, with 75 where the database can't be reached: then nothing was compared, which it
says. The licences are in .run/licences.csv. Needs the images (make build-images) and pip-audit, which `make audit` brings.
"""

import csv
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bundle import IMAGES

ROOT = Path(__file__).resolve().parent.parent
PIP_AUDIT = ROOT / ".run" / "env" / "tests" / "bin" / "pip-audit"
LICENCES = ROOT / ".run" / "licences.csv"
UNREACHABLE = 75
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)

# Prints name, version and licence of each Python package of an image.
PACKAGES = """
import importlib.metadata, json
found = {}
for package in importlib.metadata.distributions():
    told = package.metadata
    classifiers = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
    text = (told["License"] or "").strip()
    named = told["License-Expression"] or ", ".join(classifiers) or (text.splitlines() or [""])[0][:80]
    files = [str(f) for f in package.files or [] if "licen" in str(f).lower() or "copying" in str(f).lower()]
    found[told["Name"]] = [package.version, named or (f"see {files[0]}" if files else "")]
print(json.dumps(found))
"""


def main() -> None:
    """Do both, and end as the docstring says."""
    licences = list_licences()
    LICENCES.parent.mkdir(exist_ok=True)
    with LICENCES.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "package", "version", "licence"), *licences])
    print(f"{len(licences)} packages in {len(IMAGES)} images; their licences are in {LICENCES.relative_to(ROOT)}")
    for licence, count in Counter(row[3] for row in licences).most_common(12):
        print(f"  {count:5} {licence}")
    for image, package, version, _ in (row for row in licences if not row[3]):
        print(f"  {image}: {package} {version} names no licence")
    sys.exit(audit())


def list_licences() -> list[tuple[str, str, str, str]]:
    """Return image, package, version and licence of each Python package in the images."""
    found = []
    for image in IMAGES:
        command = ["docker", "run", "--rm", "--network=none", "--entrypoint=python3", image, "-c", PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            continue  # PostgreSQL's and Valkey's have no Python
        found += [(image, name, version, licence) for name, (version, licence) in sorted(json.loads(done.stdout).items())]
    return found


def audit() -> int:
    """Print what is known about the locked packages; return the exit code."""
    locks = [ROOT / name for name in git_files() if name.endswith(".txt")]
    pinned = sorted({match for lock in locks for match in PINNED.findall(lock.read_text(encoding="utf-8"))})
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in pinned)
        file.flush()
        options = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
        command = [str(PIP_AUDIT), "--requirement", file.name, *options]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(
            f"NOT AUDITED: the database of vulnerabilities can't be reached, so {len(pinned)} packages were not compared with it"
        )
        print(f"  {reason[:300]}\n  run `make audit` where it can be")
        return UNREACHABLE
    known = [(p["name"], p.get("version", ""), v) for p in packages for v in p.get("vulns", [])]
    not_found = [p["name"] for p in packages if p.get("skip_reason")]
    for name, version, flaw in known:
        print(f"  {name} {version}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}")
    if not_found:
        print(f"  not in the database: {', '.join(not_found)}")
    if len(not_found) == len(packages):
        print(f"NOT AUDITED: the database knows none of {len(packages)} packages")
        return UNREACHABLE
    print(f"{len(pinned)} packages in {len(locks)} locks: {len(known) or 'no'} known vulnerabilities")
    return bool(known)


def git_files() -> list[str]:
    """Return the files of this checkout."""
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    main()

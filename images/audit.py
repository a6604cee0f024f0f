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
from typing import Any

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
    locks = [name for name in git_files() if name.endswith(".txt")]
    known = 0
    for name in locks:
        pinned = sorted(set(PINNED.findall((ROOT / name).read_text(encoding="utf-8"))))
        packages, reason = compare(pinned)
        if not packages or all(package.get("skip_reason") for package in packages):
            print(f"NOT AUDITED: the database of vulnerabilities can't be reached, so nothing was compared with it ({reason})")
            print("  run `make audit` where it can be")
            return UNREACHABLE
        for package in packages:
            for flaw in package.get("vulns", []):
                known += 1
                mended = ", ".join(flaw["fix_versions"]) or "no version"
                print(f"  {name}: {package['name']} {package['version']}: {flaw['id']}, mended in {mended}")
            if package.get("skip_reason"):
                print(f"  {name}: {package['name']} was not compared: {package['skip_reason']}")
    print(f"{len(locks)} locks: {known or 'no'} known vulnerabilities")
    return int(bool(known))


def compare(pinned: list[tuple[str, str]]) -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit says of packages, a dict each, or none, and why not."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in pinned)
        file.flush()
        options = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
        done = subprocess.run([str(PIP_AUDIT), "--requirement", file.name, *options], capture_output=True, text=True)
    try:
        return json.loads(done.stdout)["dependencies"], "it knows none of them"
    except (ValueError, KeyError):
        return [], (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]


def git_files() -> list[str]:
    """Return the files of this checkout."""
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    main()

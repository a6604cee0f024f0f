#!/usr/bin/env python3
"""Build the images: heart/base, every stage, and the servers, tagged `dev` and with the git revision.

With a registry in reach they are made from public base images; PYTHON_IMAGE, POSTGRES_IMAGE, VALKEY_IMAGE and PGADMIN_IMAGE
name others. Without one, stand-ins are made from Debian's and PyPI's packages under local names, and the build says so.

    images/build.py                    build all
    images/build.py extract mlflow     build these, and what they are made from
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

IMAGES = Path(__file__).resolve().parent
ROOT = IMAGES.parent
sys.path.insert(0, str(ROOT / "dags"))
from engine import exists, require_engine  # noqa: E402

from stages import STAGES  # noqa: E402

# Public base images, named nowhere else; the variable <NAME>_IMAGE names another.
PUBLIC = {
    "python": "python:3.13-slim-trixie",
    "postgres": "postgres:17-trixie",
    "valkey": "valkey/valkey:8",
    "pgadmin": "dpage/pgadmin4:9",
}
# What is made here beside the stages.
OTHERS = {
    "ml": "the packages that train, evaluate and predict share",
    "mlflow": "MLflow server: runs, registry and artifacts",
    "airflow": "Airflow: api-server, scheduler, dag-processor, triggerer, worker",
}
# The public services, which are used as they are.
SERVICES = tuple(name for name in PUBLIC if name != "python")
# What the stand-in for Debian is made with: no documentation that no container reads, but every package's licence.
DEBIAN_OPTIONS = (
    "--variant=minbase",
    "--include=python3,python3-pip,python3-venv,ca-certificates,tzdata,netbase",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale", "info", "lintian")),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)
DEBIAN = f"heart-local/debian:trixie-{hashlib.sha256(' '.join(DEBIAN_OPTIONS).encode()).hexdigest()[:8]}"
CERTIFICATES = Path("/etc/ssl/certs")
# The licence of what is in this repository; that of each package is in the bundle's SBOM.
LICENCE = "Apache-2.0"


def main() -> None:
    """Build what is asked for, bases first, the rest two at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*STAGES, *OTHERS, *SERVICES, "base"]
    parser.add_argument("image", nargs="*", help=f"default: all of {', '.join(known)}")
    wanted = parser.parse_args().image or known
    if unknown := set(wanted) - set(known):
        sys.exit(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    require_engine()

    arguments = {"PYTHON_IMAGE": base_image("python")}
    embedded = {"embedded": ROOT / "embedded"}
    build("heart/build", IMAGES / "base", arguments, embedded, target="build")
    build("heart/base", IMAGES / "base", arguments, embedded, target="base", description="what every stage is made from")
    # `ml` first: the images that are made from it wait for it, the others don't.
    made = {n for n in wanted if n in STAGES or n in OTHERS}
    made |= {base for n in made if (base := base_of(n)) in OTHERS}
    with ThreadPoolExecutor(2) as pool:
        tasks: dict[str, Future[None]] = {}
        for name in sorted(made, key=lambda n: (n != "ml", base_of(n) == "ml", n)):
            tasks[name] = pool.submit(build_after, tasks.get(base_of(name)), name)
        services = [pool.submit(base_image, name, arguments["PYTHON_IMAGE"]) for name in SERVICES if name in wanted]
        for task in tasks.values():
            task.result()
        for service in services:
            service.result()


def base_of(name: str) -> str:
    """Return the image of ours that an image is made from, as its Dockerfile says."""
    (base,) = re.findall(r"^ARG BASE_IMAGE=heart/(\w+):dev$", (IMAGES / name / "Dockerfile").read_text(), re.MULTILINE)
    return base


def build_after(base: "Future[None] | None", name: str) -> None:
    """Build an image once the one that it is made from is there."""
    if base:
        base.result()
    build(f"heart/{name}", IMAGES / name, {}, {}, description=STAGES[name].summary if name in STAGES else OTHERS[name])


def base_image(name: str, python: str = "") -> str:
    """Return the base image to use: the one that a variable names, the public one, or a stand-in made here.

    It is tagged `heart-base/<name>` too, so that compose files and tests need not know which one it is.
    """
    named = os.environ.get(f"{name.upper()}_IMAGE")
    wanted = named or PUBLIC[name]
    tag = f"heart-base/{name}:dev"
    if not exists("image", wanted) and (problem := pull(wanted)):
        if named:
            sys.exit(f"{name.upper()}_IMAGE={named}: {problem}")
        print(f"{wanted} can't be pulled: making a stand-in from Debian's and PyPI's packages", flush=True)
        source = {"DEBIAN_IMAGE": make_debian()} if name == "python" else {"PYTHON_IMAGE": python}
        build(
            f"heart-local/{name}",
            IMAGES / "bases" / name,
            source,
            {"certificates": CERTIFICATES},
            description=f"stand-in for {wanted}",
        )
        wanted = f"heart-local/{name}:dev"
    docker("tag", wanted, tag)
    return tag


def pull(name: str) -> str:
    """Pull an image; return what went wrong, or nothing."""
    done = subprocess.run(["docker", "pull", "--quiet", name], capture_output=True, text=True)
    return (done.stderr.strip() or "it can't be pulled") if done.returncode else ""


def make_debian() -> str:
    """Make a minimal Debian with Python from the mirror that this machine uses. Ends the program where it can't."""
    if exists("image", DEBIAN):
        return DEBIAN
    if not shutil.which("mmdebstrap"):
        if os.geteuid() or not shutil.which("apt-get"):
            sys.exit("mmdebstrap is needed to make base images without a registry; install it: apt-get install mmdebstrap")
        run(["apt-get", "install", "-qy", "--no-install-recommends", "mmdebstrap"])
    with tempfile.TemporaryDirectory() as folder:
        tar = str(Path(folder) / "debian.tar")
        run(["mmdebstrap", "--quiet", *DEBIAN_OPTIONS, "trixie", tar])
        docker("import", tar, DEBIAN)
    return DEBIAN


def build(
    name: str, context: Path, arguments: dict[str, str], contexts: dict[str, Path], target: str = "", description: str = ""
) -> None:
    """Build one image from a folder and say how long it took."""
    started = time.monotonic()
    title = name.rsplit("/", 1)[-1]
    revision = git("rev-parse", "HEAD") or "unknown"
    version = git("describe", "--always", "--dirty") or "unknown"
    labels = {
        "title": f"heart-pipeline {title}",
        "description": description or title,
        "version": version,
        "revision": revision,
        "source": source_address(),
        "licenses": LICENCE,
    }
    command = ["buildx", "build", "--quiet", "--load", "--tag", f"{name}:dev"]
    command += ["--tag", f"{name}:{version}"] if version != "unknown" else []
    command += [f"--label=org.opencontainers.image.{key}={value}" for key, value in labels.items()]
    command += [f"--build-arg={key}={value}" for key, value in arguments.items()]
    command += [f"--build-context={key}={path}" for key, path in contexts.items()]
    command += ["--target", target] if target else []
    docker(*command, str(context))
    print(f"{name:<22} {time.monotonic() - started:6.1f} s", flush=True)


def git(*arguments: str) -> str:
    """Return what git says of this checkout, nothing where it is none."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def source_address() -> str:
    """Return where the code comes from: the address of git's remote, without credentials, or the project's name."""
    address = re.sub(r"//[^/@]*@", "//", git("remote", "get-url", "origin"))
    return address if "://" in address or re.match(r"[\w.-]+@[\w.-]+:", address) else "heart-pipeline"


def docker(*arguments: str) -> None:
    """Run a docker command; end with what it said where it fails."""
    run(["docker", *arguments])


def run(command: list[str]) -> None:
    """Run a command; end with what it said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Build the images: heart/base, every stage, and the servers, tagged `dev` and with the git revision.

With a registry in reach they are made from public base images; PYTHON_IMAGE and POSTGRES_IMAGE name others. Without one,
stand-ins are made from Debian's and PyPI's packages under local names, and the build says so.

    images/build.py                    build all
    images/build.py extract mlflow     build these, and what they are made from
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

IMAGES = Path(__file__).resolve().parent
ROOT = IMAGES.parent
sys.path.insert(0, str(ROOT / "dags"))
from stages import STAGES  # noqa: E402

# Public base images, named nowhere else; the variable <NAME>_IMAGE names another.
PUBLIC = {"python": "python:3.13-slim-trixie", "postgres": "postgres:17-trixie"}
DEBIAN = "heart-local/debian:trixie"
DEBIAN_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates,tzdata,netbase"
# Documentation that no container reads.
EXCLUDED = ("doc", "man", "locale", "info", "lintian")
SERVERS = {"mlflow": "MLflow server: runs, registry and artifacts"}
CERTIFICATES = Path("/etc/ssl/certs")


def main() -> None:
    """Build what is asked for, bases first, the rest two at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="*", help="stage or server to build; default: all")
    wanted = parser.parse_args().image or [*STAGES, *SERVERS, "postgres"]
    if unknown := set(wanted) - {*STAGES, *SERVERS, "postgres", "base"}:
        sys.exit(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join([*STAGES, *SERVERS, 'postgres', 'base'])}")
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        sys.exit("no Docker engine answers; `make docker-engine` installs and starts one on Debian and Ubuntu")

    python = base_image("python")
    arguments = {"PYTHON_IMAGE": python}
    embedded = {"embedded": ROOT / "embedded"}
    build("heart/build", IMAGES / "base", arguments, embedded, target="build")
    build("heart/base", IMAGES / "base", arguments, embedded, target="base", description="what every stage is made from")
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(build, f"heart/{n}", IMAGES / n, {}, {}, description=summary_of(n))
                 for n in wanted if n not in ("base", "postgres")]  # fmt: skip
        if "postgres" in wanted:
            tasks.append(pool.submit(lambda: print("postgres is", base_image("postgres", python), flush=True)))
        for task in tasks:
            task.result()


def summary_of(image: str) -> str:
    """Return in a sentence what an image does."""
    return STAGES[image].summary if image in STAGES else SERVERS[image]


def base_image(name: str, python: str = "") -> str:
    """Return the base image to use: the one that a variable names, the public one, or a stand-in made here.

    It is tagged `heart-base/<name>` too, so that compose files and tests need not know which one it is.
    """
    wanted = os.environ.get(f"{name.upper()}_IMAGE", PUBLIC[name])
    tag = f"heart-base/{name}:dev"
    if not image_exists(wanted) and not can_pull(wanted):
        print(f"{wanted} can't be pulled: making a stand-in from Debian's packages", flush=True)
        wanted = make_debian() if name == "python" else python
        source = {"DEBIAN_IMAGE" if name == "python" else "PYTHON_IMAGE": wanted}
        build(f"heart-local/{name}", IMAGES / "bases" / name, source, {"certificates": CERTIFICATES})
        wanted = f"heart-local/{name}:dev"
    docker("tag", wanted, tag)
    return tag


def image_exists(name: str) -> bool:
    """Return whether the engine has an image."""
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode == 0


def can_pull(name: str) -> bool:
    """Pull an image; return whether that worked."""
    return subprocess.run(["docker", "pull", "--quiet", name], capture_output=True).returncode == 0


def make_debian() -> str:
    """Make a minimal Debian with Python from the mirror that this machine uses. Ends the program where it can't."""
    if image_exists(DEBIAN):
        return DEBIAN
    if not shutil.which("mmdebstrap"):
        if os.geteuid() or not shutil.which("apt-get"):
            sys.exit("mmdebstrap is needed to make base images without a registry; install it: apt-get install mmdebstrap")
        run(["apt-get", "install", "-qy", "--no-install-recommends", "mmdebstrap"])
    options = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in EXCLUDED]
    with tempfile.TemporaryDirectory() as folder:
        tar = str(Path(folder) / "debian.tar")
        run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", *options, "trixie", tar])
        docker("import", tar, DEBIAN)
    return DEBIAN


def build(
    name: str, context: Path, arguments: dict[str, str], contexts: dict[str, Path], target: str = "", description: str = ""
) -> None:
    """Build one image from a folder and say how long it took."""
    started = time.monotonic()
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    title = name.rsplit("/", 1)[-1]
    labels = {
        "title": f"heart-pipeline {title}",
        "description": description or title,
        "version": revision or "unknown",
        "revision": revision or "unknown",
        "source": "heart-pipeline",
        "licenses": "see README.md",
    }
    command = ["buildx", "build", "--quiet", "--load", "--tag", f"{name}:dev"]
    command += ["--tag", f"{name}:{revision}"] if revision else []
    command += [f"--label=org.opencontainers.image.{key}={value}" for key, value in labels.items()]
    command += [f"--build-arg={key}={value}" for key, value in arguments.items()]
    command += [f"--build-context={key}={path}" for key, path in contexts.items()]
    command += ["--target", target] if target else []
    docker(*command, str(context))
    print(f"{name:<22} {time.monotonic() - started:6.1f} s", flush=True)


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

#!/usr/bin/env python3
"""Everything in one archive, for a machine with a Docker engine and no network at all.

images/bundle.py make       write .run/heart-pipeline-<version>.tar: this checkout, all images, an SBOM (CycloneDX) of
each image, and SHA256SUMS
images/bundle.py install    in the unpacked archive: check every file, load the images
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from build import OTHERS, ROOT, SERVICES, docker, git, run
from engine import exists

from stages import STAGES

# It asks nobody for newer versions of itself, and digests no files: an SBOM names packages.
os.environ |= {"SYFT_CHECK_FOR_APP_UPDATE": "false", "SYFT_FILE_METADATA_SELECTION": "none"}
SYFT = ROOT / ".run" / "env" / "bundle" / "bin" / "syft"
IMAGES = [*(f"heart/{name}:dev" for name in ("base", *STAGES, *OTHERS)), *(f"heart-base/{name}:dev" for name in SERVICES)]
SUMS = "SHA256SUMS"
CONTENT = Path("bundle")


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "install"))
    {"make": make, "install": install}[parser.parse_args().what]()


def make() -> None:
    """Write the archive beside the state of `make run`."""
    version = git("describe", "--always", "--dirty") or "unknown"
    name = f"heart-pipeline-{version}"
    target = ROOT / ".run" / f"{name}.tar"
    for image in IMAGES:
        if not exists("image", image):
            sys.exit(f"there is no image {image}; make it: make build-images")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        top = Path(folder) / name
        for file in git("ls-files").splitlines():
            if (ROOT / file).is_file():
                (top / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, top / file)
        (top / CONTENT / "sbom").mkdir(parents=True)
        print(f"describing {len(IMAGES)} images", flush=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(partial(describe, top / CONTENT / "sbom"), IMAGES))
        save(top / CONTENT / "images.tar.gz")
        files = sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())
        (top / SUMS).write_text("".join(f"{sha256_of(top / file)}  {file}\n" for file in files))
        unfinished = target.with_suffix(".unfinished")
        with tarfile.open(unfinished, "w") as archive:
            archive.add(top, name)
        unfinished.rename(target)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e6:.0f} MB, {len(IMAGES)} images", flush=True)
    print(f"on the other machine: tar xf {target.name} && cd {name} && make install-bundle && make up")


def describe(folder: Path, image: str) -> None:
    """Write what an image holds, Debian's and Python's packages with versions and licences, as CycloneDX JSON."""
    target = folder / f"{image.split(':')[0].replace('/', '-')}.cdx.json"
    run([str(SYFT), "scan", "--quiet", f"docker:{image}", "--output", f"cyclonedx-json={target}"])


def save(target: Path) -> None:
    """Save all images in one compressed archive, where layers that they share are stored once."""
    print("saving the images", flush=True)
    with (
        gzip.open(target, "wb", compresslevel=1) as file,
        subprocess.Popen(["docker", "save", *IMAGES], stdout=subprocess.PIPE) as saving,
    ):
        shutil.copyfileobj(saving.stdout, file, 1 << 20)  # type: ignore[arg-type]
    if saving.returncode:
        sys.exit(f"docker save ended with {saving.returncode}")


def install() -> None:
    """Check every file of the unpacked bundle and load its images."""
    sums = ROOT / SUMS
    if not sums.exists():
        sys.exit("this is no unpacked bundle; `make bundle` writes one")
    expected = dict(reversed(line.split("  ", 1)) for line in sums.read_text().splitlines())
    for file, digest in expected.items():
        if not (ROOT / file).is_file():
            sys.exit(f"{file} is missing; unpack the bundle again")
        if sha256_of(ROOT / file) != digest:
            sys.exit(f"{file} is not what was bundled; copy the bundle again")
    print(f"{len(expected)} files are what was bundled", flush=True)
    docker("load", "--quiet", "--input", str(ROOT / CONTENT / "images.tar.gz"))
    print(f"loaded {len(IMAGES)} images; `make up` starts the system")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()

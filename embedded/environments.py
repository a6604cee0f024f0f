"""Make the Python environments that the project needs on this machine, under `.run/env/`, from the locked requirements.

One environment a stage, so that what a stage does not declare is missing, as in its image; one for the MLflow server;
one for Airflow and embedded PostgreSQL. An environment is made again when its lock or the Python changes.

Needs nothing but Python 3.11 or later with venv, and PyPI in reach (pip's own settings for an index are respected).
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".run"
ENVIRONMENTS = STATE / "env"
UV = ENVIRONMENTS / "uv" / "bin" / "uv"
sys.path.insert(0, str(ROOT / "dags"))
from stages import STAGES  # noqa: E402


def main() -> None:
    """Make what a command needs, or remove all state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        choices=("run", "test", "bench", "bundle", "uv", "clean"),
        help="run: what `make run` needs; test: that and the tests' own; bench: that and what the "
        "benchmark compares with; bundle: what looks into images; uv: only the "
        "installer, which makes locks too; clean: remove .run/ with all state",
    )
    what = parser.parse_args().what
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one must be told
        sys.exit(f"Python {sys.version.split()[0]} is too old: 3.11 or later is needed; name one with PYTHON=python3.13")
    if what == "clean":
        clean()
        return
    if what == "uv":
        bootstrap_uv()
        return
    locks = {name: ROOT / "images" / name / "requirements.txt" for name in (*STAGES, "mlflow")}
    locks["embedded"] = ROOT / "embedded" / "requirements.txt"
    if what in ("test", "bench"):
        locks["tests"] = ROOT / "tests" / "requirements.txt"
    if what == "bench":
        locks["bench"] = ROOT / "tests" / "bench" / "requirements.txt"
    if what in ("test", "bench", "bundle"):
        locks["bundle"] = ROOT / "images" / "bundle.txt"
    if what == "bundle":
        locks = {"bundle": locks["bundle"]}
    due = {name: lock for name, lock in locks.items() if not is_current(name, lock)}
    if not due:
        return
    started = time.monotonic()
    print(f"setting up {len(due)} environments in .run/env: {', '.join(due)}", flush=True)
    bootstrap_uv()
    for name, lock in due.items():
        install(name, lock)
    print(f"set up in {time.monotonic() - started:.0f} s", flush=True)


def fingerprint(lock: Path) -> str:
    """Return what an environment is made from: its lock and this Python."""
    return hashlib.sha256(f"{sys.version} {sys.executable}".encode() + lock.read_bytes()).hexdigest()


def is_current(name: str, lock: Path) -> bool:
    """Return whether an environment is complete and made from this lock."""
    stamp = ENVIRONMENTS / name / "made-from"
    return stamp.is_file() and stamp.read_text() == fingerprint(lock)


def bootstrap_uv() -> None:
    """Install uv, which installs the rest in a tenth of pip's time."""
    lock = ROOT / "embedded" / "uv.txt"
    if is_current("uv", lock):
        return
    home = ENVIRONMENTS / "uv"
    shutil.rmtree(home, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"python -m venv failed; on Debian and Ubuntu install python3-venv\n{error.stdout}{error.stderr}".rstrip())
    run([home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
         "--requirement", lock])  # fmt: skip
    (home / "made-from").write_text(fingerprint(lock))


def install(name: str, lock: Path) -> None:
    """Make one environment with exactly what its lock names."""
    home = ENVIRONMENTS / name
    environment = {"UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "true"}
    if index := pip_index():
        environment["UV_DEFAULT_INDEX"] = index
    environment |= os.environ
    shutil.rmtree(home, ignore_errors=True)
    run([UV, "venv", "--quiet", "--python", sys.executable, home], environment)
    run([UV, "pip", "sync", "--quiet", "--require-hashes", "--python", home / "bin" / "python", lock], environment)
    (home / "made-from").write_text(fingerprint(lock))


def pip_index() -> str:
    """Return the package index that pip is set up to use here, empty where it is PyPI itself."""
    asked = subprocess.run([ENVIRONMENTS / "uv" / "bin" / "python", "-m", "pip", "config", "get", "global.index-url"],
                           capture_output=True, text=True)  # fmt: skip
    return os.environ.get("PIP_INDEX_URL", asked.stdout.strip())


def run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    """Run an installer; end with what it said where it fails."""
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}".rstrip())


def clean() -> None:
    """Remove .run/ with environments and state, after ending what a killed run left behind."""
    if not STATE.exists():
        return
    with (STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("`make run` or `make ui` is at work in .run/; end it first")
        for pid_file, number in (("postgres/data/postmaster.pid", signal.SIGINT), ("mlflow/server.pid", signal.SIGTERM)):
            end(STATE / pid_file, number)
        shutil.rmtree(STATE)


def end(pid_file: Path, number: int) -> None:
    """End the server whose process number a file holds, if that process works on this state, and wait for its end."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text().splitlines()[0])
        if str(STATE).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, number)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
                time.sleep(0.05)


if __name__ == "__main__":
    main()

"""What every stage inherits, so that six images keep one contract: options, exit codes, logs, results, stopping.

A stage is a click command made with `command`. It gets a `Job`, which knows the run and the batch, finds what an
earlier stage left (`Job.result_of`, `Job.open_input`), says when nothing has to be done (`Job.skip_if_unchanged`) and
writes the stage's outputs and its result document in one atomic step (`Job.commit`).

Files lie under `<artifacts>/<run>/<stage>/<batch>/`; `result.json` in that folder is the commit mark. The newest
result of a stage and batch is also kept in `<artifacts>/.latest/`, so that an unchanged batch can be recognised.

Needs the standard library and click.
"""

import contextlib
import dataclasses
import datetime as dt
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

EXIT_USAGE = 2  # wrong options or configuration; click uses it too
EXIT_REFUSED = 65  # EX_DATAERR of sysexits.h: the input is bad, and trying again won't mend it
EXIT_UNAVAILABLE = 75  # EX_TEMPFAIL: something that the stage needs is away; try again later
EXIT_NOTHING_TO_DO = 99  # what Airflow's container operators take for 'skipped'

# The result document's line on standard output starts with this, whatever else is printed around it.
RESULT_MARKER = "::heart-result::"
# A stage must be gone 3 s after SIGTERM; past this many it ends at once, wherever it is.
STOP_SECONDS = 2.0
# A folder that a stage has just made is locked well within this.
ABANDONED_SECONDS = 60
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,199}")

log = logging.getLogger("heart")


class StageError(Exception):
    """An expected failure: one line that says what is wrong and what to do, and an exit code that says whether to retry."""

    exit_code = 1


class InputRefused(StageError):
    """The input can't be used as it is; a retry would end the same way."""

    exit_code = EXIT_REFUSED


class DependencyUnavailable(StageError):
    """PostgreSQL, MLflow or the artifact store can't be reached or is full; a retry may succeed."""

    exit_code = EXIT_UNAVAILABLE


class NothingToDo(StageError):
    """What would be done is done already; the message says how that is known."""

    exit_code = EXIT_NOTHING_TO_DO


@dataclasses.dataclass(frozen=True)
class Rows:
    """Counts of records that balance: in = out + rejected + duplicate. Raises ValueError where they don't."""

    in_: int
    out: int
    rejected: int = 0
    duplicate: int = 0

    def __post_init__(self) -> None:
        if self.in_ != self.out + self.rejected + self.duplicate:
            raise ValueError(f"the counts don't balance: {self}")

    def as_dict(self) -> dict[str, int]:
        """Return the counts under the names that the result document uses."""
        return {"in": self.in_, "out": self.out, "rejected": self.rejected, "duplicate": self.duplicate}


@dataclasses.dataclass(frozen=True)
class File:
    """One file or table that was read or written: where it is, SHA-256 of its content in hex, number of its rows."""

    uri: str
    sha256: str
    rows: int | None = None


@dataclasses.dataclass
class Job:
    """One run of one stage on one batch."""

    stage: str
    run: str
    batch: str | None
    artifacts: Path
    image: str
    revision: str
    force: bool
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.time)
    fingerprint: str = ""
    inputs: list[File] = dataclasses.field(default_factory=list)
    result: dict[str, Any] | None = None

    def folder(self, stage: str) -> Path:
        """Return where a stage's files of this run and batch lie."""
        return self.artifacts / self.run / stage / (self.batch or "")

    def result_of(self, stage: str) -> dict[str, Any]:
        """Return the result document that an earlier stage left in this run. Raises InputRefused where there is none."""
        path = self.folder(stage) / "result.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputRefused(
                f"{path}: no result of {stage} for run {self.run!r}; run {stage} first, with the same run, batch and artifacts"
            ) from None
        except ValueError as error:
            raise InputRefused(f"{path}: not a result document ({error}); run {stage} again with --force") from None

    def open_input(self, stage: str, name: str) -> Path:
        """Return the path of a file that an earlier stage wrote, after comparing its checksum with the one recorded.

        Raises InputRefused where the file is missing or is not what that stage wrote.
        """
        for output in self.result_of(stage)["outputs"]:
            if output["uri"].rsplit("/", 1)[-1] == name:
                path = self.artifacts / output["uri"]
                if not path.is_file():
                    raise InputRefused(f"{path}: missing; run {stage} again with --force")
                if sha256_of(path) != output["sha256"]:
                    raise InputRefused(f"{path}: altered or cut short since {stage} wrote it; run {stage} again with --force")
                self.inputs.append(File(**output))
                return path
        raise InputRefused(f"{self.folder(stage)}/result.json: lists no {name}; run {stage} again with --force")

    def skip_if_unchanged(self, **fingerprint: Any) -> None:
        """Raise NothingToDo where the newest result of this stage and batch came from the same inputs, image and options.

        The earlier outputs then stand for this run's too: this run's result document names them.
        """
        # Content only: the same bytes in another run's folder are the same input.
        facts = {"image": self.image, **fingerprint, "inputs": [f.sha256 for f in self.inputs]}
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        with contextlib.suppress(FileNotFoundError):
            latest = json.loads(self._latest.read_text(encoding="utf-8"))
            paths = [(self.artifacts / output["uri"], output["sha256"]) for output in latest["outputs"]]
            intact = all(path.is_file() and sha256_of(path) == digest for path, digest in paths)
            if latest["fingerprint"] == self.fingerprint and intact and not self.force:
                self._publish({**latest, **self._identity(), "outcome": "unchanged"}, None)
                raise NothingToDo(f"unchanged since {latest['started'][:16].replace('T', ' ')} UTC")

    def nothing_to_do(self, message: str, rows: Rows | None = None, metrics: dict[str, Any] | None = None) -> NoReturn:
        """Record that the work is done already, as the place where it would be written shows, and raise NothingToDo."""
        self._publish(self._document("unchanged", rows, metrics), None)
        raise NothingToDo(message)

    @contextlib.contextmanager
    def output_folder(self) -> Iterator[Path]:
        """Give a temporary folder beside the place where this stage's files belong; gone on failure.

        Its parent is temporary too, and as good for scratch files. What tries that were killed left is removed: a folder
        is locked as long as its stage works.
        """
        parent = self.folder(self.stage).parent
        parent.mkdir(parents=True, exist_ok=True)
        anywhere = Path("*", *parent.relative_to(self.artifacts).parts[1:], f".{self.stage}-*")
        for left in self.artifacts.glob(str(anywhere)):
            _remove_where_nobody_works(left)
        with tempfile.TemporaryDirectory(prefix=f".{self.stage}-", dir=parent, ignore_cleanup_errors=True) as name:
            descriptor = os.open(name, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder = Path(name, "outputs")
                folder.mkdir()
                yield folder
            finally:
                os.close(descriptor)

    def commit(
        self,
        rows: Rows | None,
        *,
        folder: Path | None = None,
        outputs: dict[str, int | None] | None = None,
        tables: Iterable[File] = (),
        metrics: dict[str, Any] | None = None,
    ) -> None:
        """Make the outputs and the result document visible in one rename, and print the document.

        folder: the temporary folder with the outputs; outputs: their names and row counts; tables: what was written
        elsewhere; metrics: numbers worth seeing.
        """
        place = self.folder(self.stage).relative_to(self.artifacts)
        files = [File(str(place / name), sha256_of(folder / name), count) for name, count in (outputs or {}).items() if folder]
        document = self._document("done", rows, metrics, files, tables)
        self._publish(document, folder)
        write_atomically(self._latest, json.dumps(document, indent=2))

    @property
    def _latest(self) -> Path:
        return self.artifacts / ".latest" / self.stage / f"{self.batch or 'all'}.json"

    def _identity(self) -> dict[str, Any]:
        """Return what tells this result from any other: never part of a comparison between runs."""
        return {
            "stage": self.stage,
            "run": self.run,
            "batch": self.batch,
            "image": self.image,
            "revision": self.revision,
            "parameters": self.parameters,
            "started": dt.datetime.fromtimestamp(self.started, dt.UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.time() - self.started, 3),
        }

    def _document(
        self,
        outcome: str,
        rows: Rows | None,
        metrics: dict[str, Any] | None,
        outputs: Iterable[File] = (),
        tables: Iterable[File] = (),
    ) -> dict[str, Any]:
        return {
            **self._identity(),
            "outcome": outcome,
            "fingerprint": self.fingerprint,
            "inputs": [dataclasses.asdict(f) for f in self.inputs],
            "outputs": [dataclasses.asdict(f) for f in outputs],
            "tables": [dataclasses.asdict(f) for f in tables],
            "rows": rows.as_dict() if rows else None,
            "metrics": metrics or {},
        }

    def _publish(self, document: dict[str, Any], folder: Path | None) -> None:
        """Move the outputs with their result document into place; a result of an earlier try makes room first."""
        self.result = document
        target = self.folder(self.stage)
        text = json.dumps(document, indent=2)
        if folder is None:
            write_atomically(target / "result.json", text)
        else:
            write_atomically(folder / "result.json", text)
            folder.chmod(0o755)  # whatever the umask: the next stage may run as somebody else
            if target.exists():
                shutil.rmtree(target)
            folder.rename(target)
        print(RESULT_MARKER + json.dumps(document), flush=True)


def _remove_where_nobody_works(folder: Path) -> None:
    """Remove another try's temporary folder, unless that try still holds it, or may be about to."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime < ABANDONED_SECONDS:
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError where it is held
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is seen whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name: every container's process has the number 1.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command(
    help: str, *, per_batch: bool = True, environment: dict[str, str] | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Turn `function(job, **options)` into the stage's command, with the options that all stages share.

    help: what the stage reads, writes and promises; per_batch: whether it takes `--batch`; environment: variables that
    the stage's libraries read by themselves, with their meaning, for `--help`.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        stage = function.__name__

        def run(**options: Any) -> NoReturn:
            job = Job(
                stage=stage,
                run=options.pop("run"),
                batch=options.pop("batch", None),
                artifacts=options.pop("artifacts"),
                image=options.pop("image"),
                revision=options.pop("revision"),
                force=options.pop("force"),
                parameters=options,
            )
            sys.exit(_run(function, job, options))

        shared = [
            click.Option(["--run"], envvar="HEART_RUN", show_envvar=True, default="manual", show_default=True,
                         callback=_check_name, help="Run that this belongs to; its files lie in a folder of this name."),
            click.Option(["--artifacts"], envvar="HEART_ARTIFACTS", show_envvar=True, required=True,
                         type=click.Path(file_okay=False, path_type=Path), help="Folder that the stages share."),
            click.Option(["--image"], envvar="HEART_IMAGE", show_envvar=True, default="unknown", show_default=True,
                         help="What this stage was made from, recorded in its result; a new one means that work is redone."),
            click.Option(["--revision"], envvar="HEART_REVISION", show_envvar=True, default="unknown", show_default=True,
                         help="Revision of the code that this stage was made from, recorded in its result."),
            click.Option(["--force"], envvar="HEART_FORCE", show_envvar=True, is_flag=True,
                         help="Do the work even where nothing changed."),
        ]  # fmt: skip
        if per_batch:
            shared.insert(0, click.Option(["--batch"], envvar="HEART_BATCH", show_envvar=True, required=True,
                                          callback=_check_name, help="Name of the delivery."))  # fmt: skip
        own = list(reversed(getattr(function, "__click_params__", [])))
        variables = "".join(f"\n\n{name}: {meaning}" for name, meaning in (environment or {}).items())
        epilog = (f"Environment read by libraries:{variables}\n\n" if variables else "") + (
            f"Exit codes: 0 done, 2 wrong usage, {EXIT_REFUSED} input refused, {EXIT_UNAVAILABLE} a dependency is "
            f"unavailable (try again), {EXIT_NOTHING_TO_DO} nothing to do, 1 anything else."
        )
        return click.Command(stage, callback=run, params=[*shared, *own], help=help, epilog=epilog)

    return decorate


def _check_name(_context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Names become folders: refuse what could lead out of the artifacts."""
    if not NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r}: only letters, digits and . _ : + - can stand in it; rename it", param=parameter)
    return value


def _run(function: Callable[..., None], job: Job, options: dict[str, Any]) -> int:
    """Run a stage's function; say in one line how it ended; return the exit code."""
    _log_to_stderr(job)
    stopped_by = _stop_on_signal()
    log.info("started")
    try:
        with contextlib.redirect_stderr(_LogLines()):
            try:
                function(job, **options)
            except Exception:
                if stopped_by:  # a library made an error of its own of it
                    sys.exit(128 + stopped_by[0])
                raise
    except click.ClickException:
        raise  # wrong usage that only the work itself could notice; click says what
    except NothingToDo as reason:
        log.info("nothing to do: %s", reason)
        return reason.exit_code
    except StageError as error:
        log.error("%s", error)
        return error.exit_code
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            log.error("%s: %s; make room there, then try again", error.filename or job.artifacts, error.strerror)
            return EXIT_UNAVAILABLE
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            log.error("%s: %s; let user %d use it, or name another place", error.filename, error.strerror, os.getuid())
            return EXIT_USAGE
        log.exception("failed")
        return 1
    except Exception:
        log.exception("failed")
        return 1
    rows = (job.result or {}).get("rows")
    log.info("done", extra={"rows": rows} if rows else {})
    return 0


class _LogLines(io.TextIOBase):
    """Takes what libraries print to standard error, and logs it line by line."""

    def write(self, text: str) -> int:
        """Log the lines of a text."""
        for line in filter(None, map(str.strip, text.splitlines())):
            log.info("%s", line)
        return len(text)


def _log_to_stderr(job: Job) -> None:
    """Log one JSON object a line, each with the run, the stage and the batch."""
    identity = {"stage": job.stage, "batch": job.batch, "run": job.run}
    standard = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            line = {"level": record.levelname, "message": record.getMessage(), **identity}
            line["time"] = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
            line |= {key: value for key, value in vars(record).items() if key not in standard}
            if record.exc_info:
                line["traceback"] = self.formatException(record.exc_info)
            return json.dumps(line, default=str)

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    log.setLevel(logging.INFO)


def _stop_on_signal() -> list[int]:
    """End within 3 s of SIGTERM or SIGINT, as process 1 of a container too, even in the middle of a long C call.

    Returns a list that holds the signal's number once it came.

    The handler unwinds the main thread, which rolls transactions back and removes temporary files. It can only run
    between two Python instructions, so a second thread, woken by the signal itself, ends a process that is stuck.
    """
    stopped_by: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def unwind(number: int, _frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        stopped_by.append(number)
        log.info("stopped by %s", signal.Signals(number).name)
        sys.exit(128 + number)

    def watch() -> None:
        while (woken := os.read(reader, 1)) and woken[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        time.sleep(STOP_SECONDS)
        os._exit(128 + woken[0])

    signal.signal(signal.SIGTERM, unwind)
    signal.signal(signal.SIGINT, unwind)
    threading.Thread(target=watch, daemon=True).start()
    return stopped_by

"""extract: read a batch as it was delivered, check its structure line by line, set malformed lines aside.

Reads   `<data>/<batch>/account_raw.csv` and `heart_raw.csv` (dialect uci), or the single file `<data>/<batch>.csv`
        (dialect kaggle); `<data>` is a folder or any URI that fsspec opens.
Writes  `account.csv` and `heart.csv`: the sound lines, untouched but for a first field with the line number;
        `quarantine.csv`: file, line, column, reason and raw text of each malformed line.
Promise every line is in one of the two. A file that can't be read at all is refused (exit 65).

What the values mean is no concern of this stage.
"""

import csv
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import fsspec

from stage import File, InputRefused, Job, Rows, command, log

if TYPE_CHECKING:
    from _csv import Writer as CsvWriter
    from io import BufferedReader

ACCOUNT_COLUMNS = ("account_id", "age", "sex")
MEASURES = ("cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal", "target")
# dialect -> the files of a delivery: name in the delivery, name of the output, columns
LAYOUTS = {
    "uci": (
        ("{batch}/account_raw.csv", "account.csv", ACCOUNT_COLUMNS),
        ("{batch}/heart_raw.csv", "heart.csv", ("account_id", *MEASURES)),
    ),
    "kaggle": (("{batch}.csv", "heart.csv", ("age", "sex", *MEASURES)),),
}
DELIMITERS = {";": "semicolon", ",": "comma", "\t": "tab"}

# No record comes near this; what is longer is no record, and must not fill the memory.
MAX_LINE_BYTES = 65_536
# As much of a malformed line as the quarantine keeps.
MAX_RAW_CHARACTERS = 1_000
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# First bytes of what people deliver by mistake.
FOREIGN = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save it as CSV",
    b"%PDF": "a PDF document; deliver CSV",
}


@dataclasses.dataclass(frozen=True)
class Header:
    """The first line of a file, understood: its delimiter and its column names, lower case, in the file's order."""

    delimiter: str
    columns: tuple[str, ...]


@command("Read the batch from --data, check its structure, and set malformed lines aside. Needs no network.")
@click.option("--data", envvar="HEART_DATA", show_envvar=True, required=True, help="Folder or URI with the batches.")
@click.option("--dialect", envvar="HEART_DIALECT", show_envvar=True, default="uci", show_default=True,
              type=click.Choice(list(LAYOUTS)), help="Layout of the files; later also the meaning of their codes.")  # fmt: skip
def extract(job: Job, data: str, dialect: str) -> None:
    """Run the stage: see the module's docstring."""
    sources = [(locate(data, name.format(batch=job.batch)), out, cols) for name, out, cols in LAYOUTS[dialect]]
    job.inputs = [checksum(source) for source, _, _ in sources]
    job.skip_if_unchanged(dialect=dialect)

    with job.output_folder() as folder:
        counts, inputs, quarantined = {}, [], 0
        with (folder / "quarantine.csv").open("w", encoding="utf-8", newline="") as file:
            quarantine = csv.writer(file, lineterminator="\n")
            quarantine.writerow(("file", "line", "column", "reason", "raw"))
            for (source, out, columns), checked in zip(sources, job.inputs, strict=True):
                sound, malformed = separate(source, columns, folder / out, quarantine)
                counts[out] = sound
                quarantined += malformed
                inputs.append(dataclasses.replace(checked, rows=sound + malformed))
                log.info("checked", extra={"file": source.path, "rows": sound + malformed, "malformed": malformed})
        job.inputs = inputs
        # A record is a line of heart.csv; an account line counts only where it is lost here.
        rows = Rows(in_=counts["heart.csv"] + quarantined, out=counts["heart.csv"], rejected=quarantined)
        job.commit(rows, folder=folder, outputs={**counts, "quarantine.csv": quarantined}, metrics={"dialect": dialect})


@dataclasses.dataclass(frozen=True)
class Source:
    """A delivered file: the file system that holds it and its path there."""

    filesystem: fsspec.AbstractFileSystem
    path: str

    @property
    def name(self) -> str:
        """Return the file's own name, which quarantined lines carry."""
        return self.path.rsplit("/", 1)[-1]

    def open(self) -> "BufferedReader":
        """Open the file for reading bytes."""
        return self.filesystem.open(self.path, "rb")


def locate(data: str, name: str) -> Source:
    """Find a delivered file. Raises InputRefused where it is missing, with what lies there instead."""
    filesystem, root = fsspec.url_to_fs(data)
    source = Source(filesystem, f"{root.rstrip('/')}/{name}")
    if filesystem.isfile(source.path):
        return source
    folder = source.path.rsplit("/", 1)[0]
    there = sorted(p.rsplit("/", 1)[-1] for p in filesystem.ls(folder, detail=False)) if filesystem.isdir(folder) else []
    hint = f"; there are {', '.join(there[:8])}" if there else ""
    if any(name.endswith(".csv") for name in there) and not any(name.endswith("_raw.csv") for name in there):
        hint += "; a single file like Kaggle's heart.csv is read with --dialect kaggle (make run: DIALECT=kaggle)"
    raise InputRefused(f"{source.path}: no such file{hint}")


def checksum(source: Source) -> File:
    """Return where a file is and its SHA-256."""
    with source.open() as file:
        return File(source.path, hashlib.file_digest(file, "sha256").hexdigest())


def read_header(source: Source, line: bytes, columns: tuple[str, ...]) -> Header:
    """Understand a file's first line. Raises InputRefused where a column is missing, doubled or unknown."""
    for magic, what in FOREIGN.items():
        if line.startswith(magic):
            raise InputRefused(f"{source.path}: is {what}")
    if not line.strip():
        raise InputRefused(f"{source.path}: line 1: is empty; it must name the columns {', '.join(columns)}")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputRefused(f"{source.path}: line 1: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    if CONTROL.search(line):
        raise InputRefused(f"{source.path}: line 1: holds control characters; it is not a CSV file")

    splits = {d: [name.strip().lower() for name in next(csv.reader([text], delimiter=d))] for d in DELIMITERS}
    delimiter = max(splits, key=lambda d: len(set(splits[d]) & set(columns)))
    names = splits[delimiter]
    where = f"{source.path}: line 1"
    if missing := [c for c in columns if c not in names]:
        hint = ""
        if "account_id" in missing and {"age", "cp", "target"} <= set(names):
            hint = "; it looks like Kaggle's heart.csv, which is read with --dialect kaggle (make run: DIALECT=kaggle)"
        elif "account_id" in names and "account_id" not in columns:
            hint = "; it looks like UCI's layout, which is read with --dialect uci (make run: DIALECT=uci)"
        what = "column" if len(missing) == 1 else "columns"
        raise InputRefused(f"{where}: {what} {', '.join(missing)} missing; there are {', '.join(names)[:200]}{hint}")
    if doubled := sorted({c for c in names if names.count(c) > 1}):
        raise InputRefused(f"{where}: column {', '.join(doubled)} stands there more than once; keep one")
    if unknown := [c for c in names if c not in columns]:
        raise InputRefused(
            f"{where}: column {', '.join(map(repr, unknown))[:200]} is not known; remove it, or give it one of the names "
            f"{', '.join(columns)}"
        )
    return Header(delimiter, tuple(names))


def read_lines(file: "BufferedReader") -> Iterator[tuple[int, bytes, int]]:
    """Yield (line number, the line without its end, its length in bytes); an overlong line is cut, its length is not."""
    readline = file.readline  # looked up once: fsspec looks it up anew each time
    number = 0
    while line := readline(MAX_LINE_BYTES):
        number += 1
        length = len(line)
        if length == MAX_LINE_BYTES:
            while not line.endswith(b"\n") and (more := readline(MAX_LINE_BYTES)):
                length += len(more)
                if more.endswith(b"\n"):
                    break
        yield number, line.rstrip(b"\r\n"), length


def separate(source: Source, columns: tuple[str, ...], out: Path, quarantine: "CsvWriter") -> tuple[int, int]:
    """Write the sound lines to a file and the malformed ones to the quarantine; return how many of each.

    The output has one header line, `line` and the columns, and the delivery's own delimiter. Blank lines are no rows.
    """
    sound = malformed = 0
    with source.open() as file, out.open("wb") as output:
        lines = read_lines(file)
        _, first, _ = next(lines, (1, b"", 0))
        header = read_header(source, first, columns)
        delimiter, is_plain = header.delimiter.encode(), plain_line(header).fullmatch
        output.write(delimiter.join(name.encode() for name in ("line", *header.columns)) + b"\n")
        for number, line, length in lines:
            if length > MAX_LINE_BYTES or not is_plain(line):
                if not line.strip():
                    continue
                text, reason = check_line(line, length, header)
                if reason is not None:
                    quarantine.writerow((source.name, number, "", reason, text[:MAX_RAW_CHARACTERS]))
                    malformed += 1
                    continue
                line = text.encode()
            output.write(b"%d%b%b\n" % (number, delimiter, line))
            sound += 1
    if not sound + malformed:
        raise InputRefused(f"{source.path}: has a header and no rows; deliver the records, or take the file away")
    return sound, malformed


def plain_line(header: Header) -> re.Pattern[bytes]:
    """Match the lines that need no closer look, nearly all: printable ASCII, no quotes, as many fields as there are columns.

    A line that begins like the header is none of them, nor is a blank one. One match is eight times faster than `check_line`.
    """
    delimiter = re.escape(header.delimiter.encode())
    field = rb'[^\x00-\x1f"\x7f-\xff%b]*' % delimiter
    neither = rb"(?!\s*(?:(?i:%b)|\Z))" % re.escape(header.columns[0].encode())
    return re.compile(neither + delimiter.join([field] * len(header.columns)))


def check_line(line: bytes, length: int, header: Header) -> tuple[str, str | None]:
    r"""Return a line's text and what is wrong with its structure, None where nothing is.

    The text of a malformed line is made printable: bytes that are no text stand as escapes like \\x00. The text of a
    sound line is untouched, or quoted in the standard way where it has quotes.
    """
    escaped = CONTROL.sub(lambda found: b"\\x%02x" % found.group()[0], line)
    printable = escaped.decode("utf-8", errors="backslashreplace")
    if length > MAX_LINE_BYTES:
        return printable, f"line has {length} bytes; at most {MAX_LINE_BYTES} are read"
    if b"\x00" in line:
        return printable, f"NUL byte at position {line.index(0) + 1}"
    if control := CONTROL.search(line):
        return printable, f"control character 0x{control.group()[0]:02x} at position {control.start() + 1}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return printable, f"not UTF-8 at position {error.start + 1}"
    fields = text.split(header.delimiter)
    if '"' in text:
        try:
            (fields,) = csv.reader([text], delimiter=header.delimiter, strict=True)
        except (csv.Error, ValueError) as error:
            return text, f"bad quoting: {error}"
        # Written back in the one way that every reader of CSV agrees on.
        quoted = ['"' + f.replace('"', '""') + '"' if re.search(f'["{header.delimiter}]', f) else f for f in fields]
        normal = header.delimiter.join(quoted)
    else:
        normal = text
    if len(fields) != len(header.columns):
        return text, f"{len(fields)} fields where {len(header.columns)} are expected"
    if tuple(f.strip().lower() for f in fields) == header.columns:
        return text, "header repeated"
    return normal, None


if __name__ == "__main__":
    extract()

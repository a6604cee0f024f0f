"""The way that most people would take first: read_csv, merge, checks, to_sql. The benchmark compares the stages with it.

python pandas_way.py FOLDER     libpq's variables name the warehouse
"""

import sys
from pathlib import Path

import pandas as pd
import sqlalchemy

RANGES = {"age": (0, 120), "trestbps": (50, 300), "chol": (50, 1000), "thalach": (30, 250), "oldpeak": (-10, 10)}
CODES = {"sex": (0, 1), "cp": (1, 2, 3, 4), "fbs": (0, 1), "restecg": (0, 1, 2), "exang": (0, 1), "slope": (1, 2, 3),
         "ca": (0, 1, 2, 3), "thal": (3, 6, 7), "target": (0, 1, 2, 3, 4)}  # fmt: skip


def main(folder: Path) -> None:
    """Load a delivery into the three tables."""
    accounts, hearts = (pd.read_csv(folder / f"{name}_raw.csv", sep=";", na_values="?") for name in ("account", "heart"))
    people = hearts.drop_duplicates().merge(accounts, on="account_id", validate="one_to_one")
    measured = people[list(RANGES)].apply(pd.to_numeric, errors="coerce")
    wrong = measured.isna() & people[list(RANGES)].notna()
    measured[["trestbps", "chol"]] = measured[["trestbps", "chol"]].where(lambda values: values != 0)
    people[list(RANGES)] = measured
    for name, (low, high) in RANGES.items():
        wrong[name] |= people[name].notna() & ~people[name].between(low, high)
    for name, codes in CODES.items():
        wrong[name] = people[name].notna() & ~people[name].isin(codes)
    people = people[~wrong.any(axis=1)]
    people["target"] = people["target"].where(people["target"].isna(), people["target"] > 0).astype("Float64")
    people = people.assign(load_id=1, batch="bench")
    engine = sqlalchemy.create_engine("postgresql+psycopg2://")
    tables = {
        "account_dim": ["account_id", "age", "sex", "load_id"],
        "heart_disease_dim": [*hearts.columns, "load_id"],
        "heart_fact": [*hearts.columns, "age", "sex", "batch", "load_id"],
    }
    for table, columns in tables.items():
        people[columns].to_sql(table, engine, schema="heart_analysis", if_exists="append", index=False, chunksize=10_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

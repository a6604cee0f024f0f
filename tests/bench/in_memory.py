"""scikit-learn alone on all people of the batch `bench`, in one frame in memory: what train and predict are compared with.

python in_memory.py fit|predict TIMES     libpq's variables name the warehouse, MLFLOW_TRACKING_URI the server with the champion

Prints {seconds: median of one fit, or of one predict_proba of the champion; frame_mb; imported_mb: memory before the frame was
read}. Reading the frame is not counted.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from features import FEATURES
from services import load_model, mlflow_client, read_frame, registered_version, warehouse


def main(what: str, times: int) -> None:
    """Fit or predict some times."""
    with mlflow_client() as client:
        champion = registered_version(client, "champion")
        model = load_model(champion.version) if what == "predict" else HistGradientBoostingClassifier()
    (imported,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    with warehouse("bench") as connection, connection.cursor() as cursor:
        query = f"SELECT {', '.join(FEATURES)}, target FROM heart_analysis.heart_feature WHERE batch = 'bench'"
        people = read_frame(cursor, query).astype(np.float64)
    X, y = people[list(FEATURES)], people["target"]
    work = (lambda: model.predict_proba(X)) if what == "predict" else (lambda: model.fit(X, y))
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    frame = people.memory_usage().sum() / 1e6
    print(json.dumps({"seconds": statistics.median(taken), "frame_mb": frame, "imported_mb": int(imported) * 1024 / 1e6}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""evaluate: judge the newly trained model on people that it has not seen, and decide whether it becomes the champion.

Reads   what train said of its run; `heart_analysis.heart_sample` and `load_batch` in PostgreSQL; the model and its
        out-of-fold probabilities in MLflow.
Writes  `heart_analysis.model_evaluation`, `drift` and `promotion`; scores, plots and report to the model's MLflow run; the
        aliases `champion` and `challenger`; `report.html` and the plots as files.
Promise people of the training batches are judged by models that had not seen them (out of fold), all others by the model
        itself; people who were in the training batches under another id are left out. Every decision is recorded. Where
        scores are too good to be true the run fails.
"""

import base64
import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services import MLFLOW, MODEL_NAME, POSTGRES, load_model, mlflow_client, read_frame, registered_version, warehouse
from stage import DependencyUnavailable, File, InputRefused, Job, Rows, command, log

if TYPE_CHECKING:
    import mlflow
    import numpy as np
    import pandas as pd
    from psycopg2.extensions import cursor as Cursor

    from drift import Drift
    from gate import Decision

BASELINE = "always the prevalence"
# No batch can have this name.
CROSS_VALIDATED = "cross validated"
PEOPLE = 'SELECT * FROM heart_analysis.heart_sample ORDER BY account_id COLLATE "C"'
LOADS = """
SELECT DISTINCT ON (batch) batch, dialect, source, rows_in, rows_loaded, rows_quarantined, rows_duplicate, loaded_at, load_id
FROM heart_analysis.load_batch ORDER BY batch, load_id DESC
"""
# Held until the connection is closed: nobody else decides about the champion meanwhile.
ONE_AT_A_TIME = "SELECT pg_advisory_lock(hashtext('heart_analysis.promotion'))"
PREVIOUS_CHAMPION = """
SELECT from_version FROM heart_analysis.promotion
WHERE model_name = %s AND to_version = %s AND decision = 'promoted' ORDER BY promotion_id DESC LIMIT 1
"""
# With fewer people a batch's scores say next to nothing.
FEWEST_PEOPLE = 20
# With fewer of either kind, nothing can be trained on, and no alarm raised.
FEWEST_OF_A_KIND = 10
SHUFFLES = 5
# The canary is sung until its standard error is this small, on at most so many people.
CANARY_ERROR, CANARY_PEOPLE, CANARY_MOST = 0.01, 1000, 60
# What the discriminant function of 1989 classified correctly, on samples of the same hospitals that differ from these.
# Detrano et al., Am. J. Cardiol. 64 (1989) 304.
PAPER = {"hungary": 0.77, "va_long_beach": 0.79, "switzerland": 0.81}


@command("Judge the newly trained model on people it has not seen; promote it, keep the champion, or refuse it.",
         per_batch=False, environment=POSTGRES | MLFLOW)  # fmt: skip
@click.option("--seed", envvar="HEART_SEED", show_envvar=True, default=1989, show_default=True,
              help="Fixes the resampling behind the intervals.")  # fmt: skip
@click.option("--rollback", is_flag=True, help="Judge nothing: make the previous champion the champion again, and record it.")
def evaluate(job: Job, seed: int, rollback: bool) -> None:
    """Run the stage: see the module's docstring."""
    if rollback:
        roll_back(job)
        return
    trained = job.result_of("train")["metrics"]
    version, run_id = trained["model_version"], trained["mlflow_run_id"]
    everybody, loads = read_warehouse()
    people = everybody[everybody["target"].notna()].astype({"target": "int64"}).reset_index(drop=True)
    digest = hashlib.sha256(everybody.to_csv(index=False).encode()).hexdigest()
    job.inputs = [File("heart_analysis.heart_sample", digest, len(everybody))]
    job.skip_if_unchanged(model_version=version, mlflow_run_id=run_id, seed=seed)

    import gate
    from estimators import one_blas_thread
    from scores import with_intervals

    with mlflow_client() as client, job.output_folder() as folder, one_blas_thread():
        run = client.get_run(run_id)
        model = load_model(version)
        judged = judge(model, people, read_out_of_fold(client, run_id))
        log.info("judged", extra={"model_version": version, "batches": {b: len(y) for b, (y, _) in judged["people"].items()}})
        results = {group: with_intervals(y, p, seed) for group, (y, p) in judged["people"].items()}
        elsewhere = leave_one_site_out(model, people)
        canary = sing(model, people[people["batch"].isin(judged["trained_on"])], seed)
        log.info("without each site, and with shuffled diagnoses", extra={"auc": elsewhere, "shuffled": round(canary, 3)})
        sites = {group: results[group] for group, (y, _) in judged["people"].items()
                 if group != CROSS_VALIDATED and min(y.sum(), len(y) - y.sum()) >= FEWEST_OF_A_KIND}  # fmt: skip
        prevalence = float(judged["people"][CROSS_VALIDATED][0].mean())
        broken = gate.alarms(results[CROSS_VALIDATED], prevalence, canary, sites)
        if broken:
            decision, champion = gate.Decision("refused", "; ".join(broken)), champion_of(client)
        else:
            decision, champion = decide(client, version, judged, results, people, seed)
        log.info("%s: %s", decision.outcome, decision.reason)
        alias = "champion" if decision.outcome == "promoted" or champion == version else "challenger"
        reference = version if alias == "champion" else champion
        known = batches_of(client, reference or version)
        drifts = measure_drift(known, everybody)
        news = new_since(client, reference or version, loads)
        summary = summarise(trained, decision, judged, results, elsewhere, drifts, everybody, known, news)
        summary |= {"alias": alias, "champion_version": reference, "canary": canary}

        figures = draw(judged, model, people, everybody, drifts, seed)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        report = render_report(client, run, folder, judged, results, summary, drifts, everybody, loads, digest, seed)
        (folder / "report.html").write_text(report, encoding="utf-8")

        log_to_mlflow(client, run_id, folder, figures, results, decision)
        with warehouse("evaluate") as connection, connection.cursor() as cursor:
            cursor.execute(ONE_AT_A_TIME)
            if champion_of(client) != champion:
                raise DependencyUnavailable("the champion changed while the model was judged; try again")
            record(cursor, job, summary, judged, results, drifts, reference or version, champion)
            # First the row: where the alias can't be set then, the next try decides the same again.
            connection.commit()
            set_aliases(client, version, decision)
        if broken:
            raise InputRefused(f"model version {version} is refused: {decision.reason}")
        rows = Rows(in_=len(everybody), out=len(everybody))
        job.commit(rows, folder=folder, outputs=dict.fromkeys(["report.html", *(f"{n}.svg" for n in figures)]), metrics=summary)


def read_warehouse() -> tuple["pd.DataFrame", list[dict[str, Any]]]:
    """Return the people of heart_sample, and each batch's last load.

    The frame has account_id, 13 features as float64, target 0, 1 or NaN, batch, load_id, and drawn_from: how many people the
    batch has who are diagnosed, or not, as this one is.
    """
    from features import FEATURES

    with warehouse("evaluate") as connection, connection.cursor() as cursor:
        people = read_frame(cursor, PEOPLE)
        cursor.execute(LOADS)
        names = [column.name for column in cursor.description or ()]
        loads = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return people.astype(dict.fromkeys((*FEATURES, "target"), "float64")), loads


def read_out_of_fold(client: "mlflow.MlflowClient", run_id: str) -> "pd.DataFrame":
    """Return what train wrote: candidate, repeat, fold, account_id, batch, target and probability; one row a judgement."""
    import tempfile

    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, "out_of_fold.csv", folder)
        table = pd.read_csv(path, dtype={"account_id": "str", "batch": "str"}, keep_default_na=False)
    parameters = client.get_run(run_id).data.params
    table.attrs |= {"chosen": parameters["chosen"], "trained_on": sorted(parameters["training_batches"].split(","))}
    return table


def judge(model: Any, people: "pd.DataFrame", out_of_fold: "pd.DataFrame") -> dict[str, Any]:
    """Collect a probability for everyone from a model that had not seen them.

    Returns `people`: {CROSS_VALIDATED or a batch: (y, p)} with p of shape (people, repeats); `frames` and `accounts`: the
    features and ids of the same people; `trained_on`: the training batches; `same`: how many were left out at each other batch
    because their features equal those of somebody trained on; `unseen`: the frame of the chosen candidate's judgements; `all`:
    that of every candidate's.
    """
    from features import FEATURES

    features = list(FEATURES)
    unseen = out_of_fold[out_of_fold["candidate"] == out_of_fold.attrs["chosen"]]
    p = unseen.pivot(index="account_id", columns="repeat", values="probability").sort_index()
    y = unseen.groupby("account_id")["target"].first().loc[p.index]
    known = people.set_index("account_id")
    result = {CROSS_VALIDATED: (y.to_numpy(), p.to_numpy())}
    accounts = {CROSS_VALIDATED: list(p.index)}
    frames = {CROSS_VALIDATED: known.reindex(p.index)[features]}
    trained_on = out_of_fold.attrs["trained_on"]
    theirs = people["batch"].isin(trained_on)
    values = people[features].round(6).apply(tuple, axis=1).map(repr)
    others, seen_before = people[~theirs], values[~theirs].isin(values[theirs])
    same = others[seen_before]["batch"].value_counts().to_dict()
    for batch, group in others[~seen_before].groupby("batch"):
        if len(group) >= FEWEST_PEOPLE:
            result[str(batch)] = (group["target"].to_numpy(), model.predict_proba(group[features])[:, 1:])
            frames[str(batch)] = group[features]
            accounts[str(batch)] = list(group["account_id"])
    return {
        "people": result,
        "frames": frames,
        "accounts": accounts,
        "trained_on": trained_on,
        "same": same,
        "unseen": unseen,
        "all": out_of_fold,
    }


def leave_one_site_out(model: Any, people: "pd.DataFrame") -> dict[str, float]:
    """Return the ROC-AUC at each batch of the same kind of model trained on all the others. Empty where there is one batch."""
    import numpy as np
    from sklearn.base import clone

    from features import FEATURES
    from scores import scores

    result = {}
    for batch in sorted(set(people["batch"])):
        here = people["batch"] == batch
        enough = people[~here]["target"].value_counts().reindex([0, 1], fill_value=0).min() >= FEWEST_OF_A_KIND
        if here.sum() >= FEWEST_PEOPLE and people[here]["target"].nunique() == 2 and enough:
            fitted = clone(model).fit(people[~here][list(FEATURES)], people[~here]["target"])
            p = fitted.predict_proba(people[here][list(FEATURES)])[:, 1:]
            result[str(batch)] = scores(people[here]["target"].to_numpy(), np.asarray(p))["auc"]
    return result


def sing(model: Any, people: "pd.DataFrame", seed: int) -> float:
    """Return the mean ROC-AUC of cross-validation after the diagnoses were shuffled: 0.5, unless what is held out is known.

    Shuffled until the mean's standard error is CANARY_ERROR, from the variance of a rank sum without differences.
    """
    import numpy as np
    import pandas as pd
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    from features import FEATURES

    random = np.random.default_rng(seed)
    share = min(1.0, CANARY_PEOPLE / len(people))
    kinds = [group.sample(max(min(len(group), FEWEST_OF_A_KIND), round(share * len(group))), random_state=seed)
             for _, group in people.groupby("target")]  # fmt: skip
    sample = pd.concat(kinds).sort_index()
    ill = int(sample["target"].sum())
    variance = (len(sample) + 1) / (12 * ill * (len(sample) - ill))
    times = min(CANARY_MOST, math.ceil(variance / CANARY_ERROR**2))
    # With the settings that it has: without them there is nothing to tune by.
    fixed = clone(model)
    fixed.set_params(**{name: False for name in fixed.get_params() if name.endswith("tune")})
    found = []
    for _ in range(times):
        shuffled = random.permutation(sample["target"].to_numpy())
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        found += list(cross_val_score(fixed, sample[list(FEATURES)], shuffled, cv=folds, scoring="roc_auc"))
    return float(np.mean(found))


def champion_of(client: "mlflow.MlflowClient") -> int | None:
    """Return the champion's version, None where there is none."""
    champion = registered_version(client, "champion")
    return champion and int(champion.version)


def decide(
    client: "mlflow.MlflowClient",
    version: int,
    judged: dict[str, Any],
    results: dict[str, Any],
    people: "pd.DataFrame",
    seed: int,
) -> tuple["Decision", int | None]:
    """Return the gate's decision on a version, and the champion's version as it was before, None where there was none."""
    import gate
    from scores import compare
    from scores import scores as score

    champion = registered_version(client, "champion")
    everything = judged["all"]
    baseline = compare(judged["unseen"], everything[everything["candidate"] == BASELINE], seed)
    scores = results[CROSS_VALIDATED]
    if champion is None:
        return gate.decide(scores, baseline, None, None), None
    if int(champion.version) == version:
        return gate.Decision("kept champion", "it is the champion already"), version
    records = client.get_model_version(MODEL_NAME, str(version)).tags["records"]
    if client.search_model_versions(f"name = '{MODEL_NAME}' AND tags.rolled_back = 'true' AND tags.records = '{records}'"):
        # Only new data, and so a new version, may bring it back.
        return gate.Decision("kept champion", "a model of the same records was taken back by hand"), int(champion.version)
    theirs = judge(load_model(champion.version), people, read_out_of_fold(client, champion.run_id))
    comparison = compare(judged["unseen"], theirs["unseen"], seed)
    if comparison is None:  # trained on other people: those that neither has seen are left
        comparison = compare(everyone_judged(judged), everyone_judged(theirs), seed)
    both = (set(judged["people"]) & set(theirs["people"])) - {CROSS_VALIDATED}
    aucs = {site: (score(*judged["people"][site])["auc"], score(*theirs["people"][site])["auc"]) for site in sorted(both)}
    return gate.decide(scores, baseline, comparison, aucs), int(champion.version)


def everyone_judged(judged: dict[str, Any]) -> "pd.DataFrame":
    """Return a judgement of each person by a model that had not seen them: account_id, repeat, fold, target, probability.

    Folds are those of a checksum of the account id, so that they are the same whoever judges.
    """
    import zlib

    import pandas as pd

    parts = []
    for group, (y, p) in judged["people"].items():
        accounts = judged["accounts"][group]
        folds = [zlib.crc32(account.encode()) % 5 for account in accounts]
        parts.append(pd.DataFrame({"account_id": accounts, "repeat": 0, "fold": folds, "target": y, "probability": p[:, 0]}))
    return pd.concat(parts, ignore_index=True)


def batches_of(client: "mlflow.MlflowClient", version: int) -> list[str]:
    """Return the batches that a version was trained on."""
    run_id = client.get_model_version(MODEL_NAME, str(version)).run_id
    return client.get_run(run_id).data.params["training_batches"].split(",")


def new_since(client: "mlflow.MlflowClient", version: int, loads: list[dict[str, Any]]) -> set[str]:
    """Return the batches that were loaded after a version was trained, and that no version was trained on since."""
    seen: dict[str, int] = {}
    everything = [load["batch"] for load in loads]
    for other in client.search_model_versions(f"name = '{MODEL_NAME}'"):
        # A version from before this was noted leaves nothing new.
        newest = int(other.tags.get("newest_load", 2**62))
        # What the version itself could have been trained on is not new, nor what another one was.
        itself = int(other.version) == version
        known = everything if itself else other.tags.get("training_batches", "").split(",")
        for batch in known:
            seen[batch] = max(seen.get(batch, 0), newest)
    return {load["batch"] for load in loads if load["load_id"] > seen.get(load["batch"], 0)}


def measure_drift(batches: list[str], everybody: "pd.DataFrame") -> dict[str, list["Drift"]]:
    """Compare each batch that a model was not trained on with the people that it was trained on: {batch: features}.

    batches: those that it was trained on.
    """
    import drift

    taught = everybody["batch"].isin(batches) & everybody["target"].notna()
    groups = everybody[~everybody["batch"].isin(batches)].groupby("batch")
    return {str(b): drift.measure(everybody[taught], g) for b, g in groups if len(g) >= drift.FEWEST_PEOPLE and taught.any()}


def summarise(
    trained: dict[str, Any],
    decision: "Decision",
    judged: dict[str, Any],
    results: dict[str, Any],
    elsewhere: dict[str, float],
    drifts: dict[str, list["Drift"]],
    everybody: "pd.DataFrame",
    known: list[str],
    news: set[str],
) -> dict[str, Any]:
    """Return what the result document says of the judgement, small enough to be read at a glance.

    known: the batches that the champion was trained on; news: those that are new to it.
    """
    import drift

    moved = {}
    for batch, found in drifts.items():
        labelled = bool(everybody[everybody["batch"] == batch]["target"].notna().any())
        moved[batch] = {"features": [d.feature for d in found if d.drifted], "drifted": drift.has_drifted(found),
                        "labelled": labelled, "new": batch in news}  # fmt: skip
    reasons = sorted(b for b, found in moved.items() if found["drifted"] and found["labelled"] and found["new"])
    return {
        "model_name": MODEL_NAME,
        "model_version": trained["model_version"],
        "mlflow_run_id": trained["mlflow_run_id"],
        "mlflow_experiment_id": trained["mlflow_experiment_id"],
        "decision": decision.outcome,
        "reason": decision.reason,
        "trained_on": judged["trained_on"],
        "metrics": results[CROSS_VALIDATED],
        "same_people": judged["same"],
        "sites": {
            batch: {"people": len(y), "majority": float(max(y.mean(), 1 - y.mean())), "metrics": results[batch]}
            for batch, (y, _) in judged["people"].items()
            if batch != CROSS_VALIDATED
        },
        "leave_one_site_out": elsewhere,
        "drift": moved,
        "drift_from": known,
        # With labelled batches, new since the champion was trained, whose people are unlike those that it knows.
        "retrain_on": [*known, *reasons] if reasons else [],
    }


def draw(
    judged: dict[str, Any],
    model: Any,
    people: "pd.DataFrame",
    everybody: "pd.DataFrame",
    drifts: dict[str, list["Drift"]],
    seed: int,
) -> dict[str, Any]:
    """Return the figures by name."""
    import plots
    import slices
    from features import FEATURES
    from scores import compare

    y, p = judged["people"][CROSS_VALIDATED]
    # One repeat: the mean of several would be another, better predictor than the one that serves.
    sites = {group: (truth, chance[:, 0]) for group, (truth, chance) in judged["people"].items()}
    candidates = judged["all"].groupby("candidate", sort=False)
    differences = {str(name): compare(frame, judged["unseen"], seed) for name, frame in candidates if name != BASELINE}
    figures = {
        "roc": plots.roc(judged["unseen"], sites),
        "precision_recall": plots.precision_recall(judged["unseen"], sites),
        "reliability": plots.reliability(y, p[:, 0]),
        "calibration_by_site": plots.calibration_by_site(sites),
        "candidates": plots.candidates({name: found for name, found in differences.items() if found}),
        "decision_curve": plots.decision_curve(slices.net_benefit(y, p[:, 0])),
        "importance": plots.importance(shuffled_features(judged, model, people, seed)),
        "missing": plots.missing(everybody[list(FEATURES)].isna().groupby(everybody["batch"]).mean()),
    }
    return figures | ({"drift": plots.drift(drifts)} if drifts else {})


def minus_log_loss(model: Any, X: "pd.DataFrame", y: "pd.Series") -> float:
    """Return minus the mean log-loss of a model, also where all people are of one kind."""
    from scores import log_losses

    return -float(log_losses(y.to_numpy(), model.predict_proba(X)[:, 1]).mean())


def shuffled_features(judged: dict[str, Any], model: Any, people: "pd.DataFrame", seed: int) -> dict[str, "np.ndarray"]:
    """Return for each feature by how much the log-loss rises when it is shuffled among people, once for each shuffle.

    Taken on the people outside the training batches where there are any, else on the training batches. Breiman, Mach.
    Learn. 45 (2001) 5.
    """
    from sklearn.inspection import permutation_importance

    from features import FEATURES

    outside = people[~people["batch"].isin(judged["trained_on"])]
    sample = outside if len(outside) >= FEWEST_PEOPLE else people
    features = list(FEATURES)
    found = permutation_importance(
        model, sample[features], sample["target"], scoring=minus_log_loss, n_repeats=SHUFFLES, random_state=seed
    )
    return dict(zip(features, found.importances, strict=True))


def render_report(
    client: "mlflow.MlflowClient",
    run: "mlflow.entities.Run",
    folder: Path,
    judged: dict[str, Any],
    results: dict[str, Any],
    summary: dict[str, Any],
    drifts: dict[str, list["Drift"]],
    everybody: "pd.DataFrame",
    loads: list[dict[str, Any]],
    digest: str,
    seed: int,
) -> str:
    """Return the report: one HTML page with its pictures inside, every figure from the results."""
    import json

    import jinja2
    from mlflow.artifacts import load_dict

    import slices
    from features import FEATURES
    from scores import compare

    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    judged_alone = {child.info.run_name: child.data.metrics for child in children}
    order = list(dict.fromkeys(judged["all"]["candidate"]))
    candidates = []
    for name in order:
        frame = judged["all"][judged["all"]["candidate"] == name]
        chosen = name == run.data.params["chosen"]
        candidates.append(
            {"name": name, **judged_alone[name], "against": None if chosen else compare(frame, judged["unseen"], seed)}
        )
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    chances = {group: p[:, 0] for group, (_, p) in judged["people"].items()}
    drawn = everybody.groupby(["batch", everybody["target"].notna().rename("diagnosed")])["drawn_from"].agg(["size", "first"])
    there = drawn["first"].groupby("diagnosed").sum()
    return template.render(
        summary=summary,
        results=results,
        counts={group: {"people": len(y), "diseased": int(y.sum()), "majority": max(y.mean(), 1 - y.mean()),
                        "paper": PAPER.get(group)} for group, (y, _) in judged["people"].items()},
        slices={group: slices.slices(judged["frames"][group], y, chances[group]) for group, (y, _) in judged["people"].items()},
        least_sensitivity=slices.LEAST_SENSITIVITY,
        candidates=candidates,
        strategies=load_dict(f"{run.info.artifact_uri}/missing_features.json"),
        parameters=run.data.params,
        tags=run.data.tags,
        loads=loads,
        lineage=json.loads(json.dumps(load_dict(f"{run.info.artifact_uri}/lineage.json"))),
        drifts=drifts,
        samples=drawn[drawn["size"] < drawn["first"]].reset_index().to_dict("records"),
        features=FEATURES,
        digest=digest,
        pictures={path.stem: "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
                  for path in folder.glob("*.svg")},
        people=there.get(True, 0),
        undiagnosed=there.get(False, 0),
    )  # fmt: skip


def record(
    cursor: "Cursor",
    job: Job,
    summary: dict[str, Any],
    judged: dict[str, Any],
    results: dict[str, Any],
    drifts: dict[str, list["Drift"]],
    reference: int,
    champion: int | None,
) -> None:
    """Write scores, drift and decision to the warehouse."""
    version = summary["model_version"]
    for batch, metrics in results.items():
        trained = batch == CROSS_VALIDATED
        place = "+".join(judged["trained_on"]) if trained else batch
        for metric, value in metrics.items():
            cursor.execute(
                "INSERT INTO heart_analysis.model_evaluation (model_name, model_version, batch, trained, metric, value, low, "
                "high, people, run, mlflow_run_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [MODEL_NAME, version, place, trained, metric, value["value"], value["low"], value["high"],
                 len(judged["people"][batch][0]), job.run, summary["mlflow_run_id"]],
            )  # fmt: skip
    for batch, found in drifts.items():
        for drift in found:
            cursor.execute(
                "INSERT INTO heart_analysis.drift (model_name, model_version, batch, feature, stability_index, p_value, "
                "drifted, run) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [MODEL_NAME, reference, batch, drift.feature, drift.index, drift.p_value, drift.drifted, job.run],
            )
    to = version if summary["decision"] == "promoted" else champion
    record_decision(cursor, job, summary["decision"], champion, to, version, summary["reason"])


def record_decision(
    cursor: "Cursor", job: Job, decision: str, before: int | None, after: int | None, candidate: int, reason: str
) -> None:
    """Add a decision about the champion: its version before and after, and the version that was judged.

    A try that was cut off after it had decided leaves nothing to add to the next one.
    """
    cursor.execute(
        "INSERT INTO heart_analysis.promotion (model_name, decision, from_version, to_version, candidate_version, reason, "
        "decided_by) SELECT %(model)s, %(decision)s, %(before)s::int, %(after)s::int, %(candidate)s, %(reason)s, %(by)s "
        "WHERE NOT EXISTS (SELECT FROM (SELECT * FROM heart_analysis.promotion WHERE model_name = %(model)s "
        "ORDER BY promotion_id DESC LIMIT 1) AS newest WHERE decided_by = %(by)s AND candidate_version = %(candidate)s "
        "AND to_version IS NOT DISTINCT FROM %(after)s::int)",
        {"model": MODEL_NAME, "decision": decision, "before": before, "after": after, "candidate": candidate, "reason": reason,
         "by": f"evaluate, run {job.run}"},
    )  # fmt: skip


def log_to_mlflow(
    client: "mlflow.MlflowClient",
    run_id: str,
    folder: Path,
    figures: dict[str, Any],
    results: dict[str, Any],
    decision: "Decision",
) -> None:
    """Add scores, plots, report and decision to the run that trained the model."""
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    parts = (("value", ""), ("low", "_low"), ("high", "_high"))
    scores = [
        Metric(f"{re.sub('[^A-Za-z0-9_. -]', '_', batch)}/{metric}{suffix}", value[part], now, 0)
        for batch, metrics in results.items()
        for metric, value in metrics.items()
        for part, suffix in parts
        if value[part] is not None
    ]
    client.log_batch(run_id, metrics=scores)
    for name in figures:
        client.log_artifact(run_id, str(folder / f"{name}.svg"), "plots")
    client.log_artifact(run_id, str(folder / "report.html"))
    client.set_tag(run_id, "heart.decision", decision.outcome)
    client.set_tag(run_id, "heart.reason", decision.reason)


def set_aliases(client: "mlflow.MlflowClient", version: int, decision: "Decision") -> None:
    """Let the alias `champion` name a promoted version, and tag the version with the decision."""
    client.set_model_version_tag(MODEL_NAME, str(version), "decision", decision.outcome)
    client.set_model_version_tag(MODEL_NAME, str(version), "reason", decision.reason)
    if decision.outcome == "promoted":
        client.set_registered_model_alias(MODEL_NAME, "champion", str(version))
        client.delete_registered_model_alias(MODEL_NAME, "challenger")


def roll_back(job: Job) -> None:
    """Make the champion before the present one the champion again. Raises InputRefused where there was none."""
    with mlflow_client() as client, warehouse("evaluate") as connection, connection.cursor() as cursor:
        cursor.execute(ONE_AT_A_TIME)
        champion = champion_of(client)
        if champion is None:
            raise InputRefused("there is no champion to go back from; the gate has promoted none so far")
        cursor.execute(PREVIOUS_CHAMPION, [MODEL_NAME, champion])
        found = cursor.fetchone()
        if found is None or found[0] is None:
            raise InputRefused(f"version {champion} is the first champion; there is none to go back to")
        previous = int(found[0])
        reason = f"taken back from version {champion} by hand"
        record_decision(cursor, job, "rolled back", champion, previous, previous, reason)
        connection.commit()
        client.set_model_version_tag(MODEL_NAME, str(champion), "rolled_back", "true")
        client.set_registered_model_alias(MODEL_NAME, "champion", str(previous))
    log.info("version %d is the champion again, version %d no longer", previous, champion)
    job.commit(None, metrics={"champion_version": previous, "from_version": champion})


if __name__ == "__main__":
    evaluate()

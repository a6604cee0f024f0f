"""What a full run came to: the document that `.run/summary.json` holds, and the table that a person reads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def summarise(events: list[dict[str, Any]], warehouse: dict[str, int], seconds: float) -> dict[str, Any]:
    """Return the summary of a run.

    events: how each stage's task ended: stage, batch, state, seconds, and result (its result document) or message;
    warehouse: rows by table; seconds: how long everything took.
    """
    ended = [event for event in events if event["state"] not in ("started", "will be tried again")]
    stages = [
        {
            "stage": event["stage"],
            "batch": event["batch"],
            "outcome": event["state"],
            "seconds": round(event["seconds"], 2),
            "rows": (event.get("result") or {}).get("rows"),
            **({"message": event["message"]} if event.get("message") else {}),
        }
        for event in ended
    ]
    results = {(event["stage"], event["batch"]): event["result"] for event in ended if event.get("result")}
    batches = [batch_counts(batch, results) for batch in sorted({e["batch"] for e in ended if e["batch"]})]
    return {
        "seconds": round(seconds, 1),
        "stages": stages,
        "batches": batches,
        "warehouse": warehouse,
        "model": model(results),
        "predictions": (results.get(("predict", None)) or {}).get("metrics"),
        "failures": [stage for stage in stages if stage["outcome"] in ("refused", "failed")],
    }


def batch_counts(batch: str, results: dict[tuple[str, str | None], dict[str, Any]]) -> dict[str, Any]:
    """Return what became of a batch's records: in = loaded + quarantined + duplicate where it is complete.

    A record is a line of heart_raw.csv with its line of account_raw.csv; an account line that belongs to none counts as
    a record of its own, in the stage that finds that out.
    """
    rows = {stage: (results.get((stage, batch)) or {}).get("rows") for stage in ("extract", "transform", "load")}
    extract, transform, load = rows["extract"], rows["transform"], rows["load"]
    if not (extract and transform and load):
        # Refused or failed on the way: nothing of it is in the warehouse.
        return {"batch": batch, "in": (extract or {}).get("in"), "loaded": 0, "quarantined": 0, "duplicate": 0, "complete": False}
    return {
        "batch": batch,
        "in": extract["rejected"] + transform["in"],
        "loaded": load["out"],
        "quarantined": extract["rejected"] + transform["rejected"] + load["rejected"],
        "duplicate": extract["duplicate"] + transform["duplicate"] + load["duplicate"],
        "complete": True,
    }


def model(results: dict[tuple[str, str | None], dict[str, Any]]) -> dict[str, Any] | None:
    """Return the model's name, version, alias, the gate's decision and the scores with intervals; None where it wasn't judged."""
    evaluated = results.get(("evaluate", None))
    if evaluated is None:
        return None
    metrics = evaluated["metrics"]
    names = {"name": "model_name", "version": "model_version", "alias": "alias", "decision": "decision", "reason": "reason",
             "champion": "champion_version", "trained_on": "trained_on", "metrics": "metrics", "sites": "sites",
             "same_people": "same_people",
             "leave_one_site_out": "leave_one_site_out", "drift": "drift", "retrain_on": "retrain_on"}  # fmt: skip
    return {name: metrics[key] for name, key in names.items()}


def describe(event: dict[str, Any]) -> str:
    """Return in a few words how a stage ended."""
    rows = (event.get("result") or {}).get("rows")
    if event["state"] == "done" and rows:
        parts = [f"{rows['in']} rows"]
        parts += [f"{rows['rejected']} quarantined"] * bool(rows["rejected"]) + [f"{rows['duplicate']} duplicates"] * bool(
            rows["duplicate"]
        )
        return ", ".join(parts)
    if event["state"] == "unchanged":
        return event["message"].removeprefix("nothing to do: ")
    return f"{event['state']}: {event['message']}" if event.get("message") else event["state"]


def line(event: dict[str, Any]) -> str:
    """Return the line that tells of a stage that ended."""
    return f"{event['stage']:<10} {event['batch'] or '':<14} {describe(event):<64} {event['seconds']:6.1f} s"


def find_report(events: list[dict[str, Any]]) -> str | None:
    """Return where evaluate left its report, below the artifacts."""
    uris = [output["uri"] for event in events for output in (event.get("result") or {}).get("outputs", [])]
    return next((uri for uri in uris if uri.endswith("/report.html")), None)


def show(summary: dict[str, Any], console: "Console", places: dict[str, str]) -> None:
    """Print the summary as tables, with where to look next."""
    from rich.table import Table

    rows = Table(title="Records", title_justify="left", title_style="bold")
    for name in ("batch", "in", "loaded", "quarantined", "duplicate"):
        rows.add_column(name, justify="left" if name == "batch" else "right")
    for batch in summary["batches"]:
        counts = [batch[key] for key in ("loaded", "quarantined", "duplicate")] if batch["complete"] else ["not loaded", "", ""]
        rows.add_row(batch["batch"], *("" if n is None else str(n) for n in (batch["in"], *counts)))
    complete = [batch for batch in summary["batches"] if batch["complete"]]
    if len(complete) > 1:
        rows.add_section()
        rows.add_row(
            "all loaded", *(str(sum(batch[key] for batch in complete)) for key in ("in", "loaded", "quarantined", "duplicate"))
        )
    console.print(rows)

    if judged := summary["model"]:
        console.print(scores_table(judged))
        for batch, count in judged["same_people"].items():
            console.print(f"{batch}: all values as somebody's trained on, so no test: {count}", highlight=False)
        drifted = [f"{batch} ({len(found['features'])} features)" for batch, found in judged["drift"].items() if found["drifted"]]
        if drifted:
            console.print(f"unlike the people that it was trained on: {', '.join(drifted)}", highlight=False)
        if judged["retrain_on"]:
            batches = " ".join(judged["retrain_on"])
            console.print(f'new, with diagnoses, and unlike them: to train on all, TRAINING_BATCH="{batches}"', highlight=False)
        console.print(f"[bold]{judged['decision']}[/]: {judged['reason']}", highlight=False)
    if summary["predictions"]:
        p = summary["predictions"]
        by = f"by version {p['model_version']}" if p["model_version"] else "for want of a champion"
        console.print(f"{p['undiagnosed']} people without a diagnosis, {p['scored']} scored now {by}", highlight=False)
    for failure in summary["failures"]:
        where = " ".join(filter(None, (failure["stage"], failure["batch"])))
        console.print(f"[bold red]{where} {failure['outcome']}[/]: {failure['message']}", highlight=False, soft_wrap=True)
    console.print(f"{summary['seconds']:.0f} s")
    for what, place in places.items():
        console.print(f"  {what:<9} {place}", highlight=False, soft_wrap=True)


def scores_table(judged: dict[str, Any]) -> "Table":
    """Return the model's scores: a row for the people it was cross-validated on, and one for each other batch."""
    from rich.table import Table

    table = Table(
        title=f"Model {judged['name']}, version {judged['version']}: judged on people it had not seen",
        title_justify="left",
        title_style="bold",
        caption="below each score: its 95 % interval",
        show_lines=True,
    )
    columns = {"ROC-AUC": "auc", "log-loss": "log_loss", "accuracy": "accuracy", "calibration slope": "calibration_slope"}
    table.add_column("people")
    for name in columns:
        table.add_column(name, justify="right")
    groups = {f"{', '.join(judged['trained_on'])}\n[dim]out of fold[/]": judged["metrics"]}
    groups |= {f"{batch}\n[dim]never seen[/]": site["metrics"] for batch, site in judged["sites"].items()}
    for group, metrics in groups.items():
        table.add_row(group, *(with_interval(metrics[key]) for key in columns.values()))
    return table


def answer(done: "subprocess.CompletedProcess[str]") -> int:
    """Print what a stage that was asked for an answer said, or why it has none, without its log; return its exit code."""
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    said = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("::"))
    if done.returncode == 0:
        print(said or next(line["message"] for line in reversed(logged) if line["message"] != "done"))
    else:
        errors = [line["message"] for line in logged if line["level"] == "ERROR"]
        errors += [line for line in done.stderr.splitlines() if not line.startswith("{")]
        print("\n".join(errors), file=sys.stderr)
    return done.returncode


def history_table(champions: list[dict[str, Any]]) -> "Table":
    """Return which model version was the champion from when until when, and why: rows of champion_history."""
    from rich.table import Table

    table = Table(title="Champions", title_justify="left", title_style="bold")
    for name in ("version", "since", "until", "decision", "reason", "by"):
        table.add_column(name, justify="right" if name == "version" else "left")
    for champion in champions:
        since, until = (champion[key][:16].replace("T", " ") if champion[key] else "now" for key in ("since", "until"))
        table.add_row(str(champion["version"]), since, until, champion["decision"], champion["reason"], champion["decided_by"])
    return table


def quarantine_table(records: list[dict[str, Any]]) -> "Table":
    """Return what is wrong with the newest delivery of each batch: rows of quarantine_current."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{len(records)} set aside; corrected at the source, the next run loads them" if records else "nothing is set aside"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("batch", "file", "line", "account", "column", "reason"):
        table.add_column(name, justify="right" if name == "line" else "left")
    for record in records:
        where = (record["batch"], record["file"], str(record["line"]), record["account_id"] or "", record["column_name"] or "")
        table.add_row(*map(escape, (*where, record["reason"])))
    return table


def still_delivered(found: "list[tuple[Path, int]]") -> str:
    """Return that nobody was erased, because these files and lines would bring them back."""
    lines = [f"  {path}, line {number}" for path, number in found]
    return "\n".join(["nothing was erased: the next run would bring this person back; first remove", *lines])


def erased(counts: dict[str, int]) -> str:
    """Return what was erased: rows of tables, files of stages and of MLflow."""
    told = [f"  {count:6} {'files' if place in ('artifacts', 'mlflow') else 'rows'}  {place}" for place, count in counts.items()]
    if not any(counts.values()):
        return "nobody of this account_id was found"
    return "\n".join(
        ["erased", *told, "a model that was trained with this person keeps what it learnt; the next run trains one without"]
    )


def with_interval(score: dict[str, float | None]) -> str:
    """Return a score with its interval under it."""
    if score["value"] is None:
        return "-"
    return f"{score['value']:.3f}\n[dim]{score['low']:.2f} to {score['high']:.2f}[/]"


def write(summary: dict[str, Any], path: Path) -> None:
    """Write the summary as JSON, seen whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)

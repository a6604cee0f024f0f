"""evaluate: scores with intervals, by hospital; a decision with its reason; a report that is whole in itself."""

import re

import pytest

from support import NOTHING_TO_DO, ask_mlflow


def test_evaluation_judges_each_hospital_and_records_the_decision(trained, registry):
    _, warehouse, outcomes = trained
    metrics = outcomes["evaluate"].result["metrics"]
    assert (metrics["decision"], metrics["alias"], metrics["trained_on"]) == ("promoted", "champion", ["cleveland"])
    for name in ("auc", "log_loss", "brier", "accuracy", "pr_auc", "calibration_slope"):
        score = metrics["metrics"][name]
        assert score["low"] < score["value"] < score["high"], name
    assert list(metrics["sites"]) == ["hungary"]
    hungary = metrics["sites"]["hungary"]
    # Detrano et al. (1989) classified 77 % of Hungary's people correctly.
    assert hungary["people"] == 294 and hungary["metrics"]["accuracy"]["value"] > 0.80

    stored = warehouse.query(
        "SELECT batch, trained, value, low, high, people FROM heart_analysis.model_evaluation WHERE metric = 'auc' ORDER BY 1"
    )
    assert [(b, t, n) for b, t, *_, n in stored] == [("cleveland", True, 303), ("hungary", False, 294)]
    assert stored[0][2:5] == tuple(metrics["metrics"]["auc"][k] for k in ("value", "low", "high"))
    (promotion,) = warehouse.query("SELECT decision, from_version, to_version, candidate_version FROM heart_analysis.promotion")
    assert promotion == ("promoted", None, metrics["model_version"], metrics["model_version"])

    listed = ask_mlflow(registry, "artifacts/list", run_id=metrics["mlflow_run_id"], path="plots")["files"]
    assert {file["path"] for file in listed} == {
        f"plots/{n}.svg" for n in ("roc", "precision_recall", "calibration", "confusion", "importance")
    }
    run = ask_mlflow(registry, "runs/get", run_id=metrics["mlflow_run_id"])["run"]
    logged = {m["key"]: m["value"] for m in run["data"]["metrics"]}
    assert logged["hungary/auc"] == pytest.approx(hungary["metrics"]["auc"]["value"])


def test_the_report_is_whole_in_itself_and_says_what_was_found(trained):
    delivery, _, outcomes = trained
    report = delivery.output(outcomes["evaluate"], "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", report) and "<script" not in report and "url(" not in report
    assert report.count("data:image/svg+xml") == 5
    metrics = outcomes["evaluate"].result["metrics"]
    for value in (metrics["metrics"]["auc"], metrics["sites"]["hungary"]["metrics"]["accuracy"]):
        assert f"{value['value']:.3f} <small>{value['low']:.3f} to {value['high']:.3f}" in report
    assert "Not for use on patients" in report and metrics["mlflow_run_id"] in report


def test_evaluating_again_changes_nothing(trained):
    delivery, warehouse, _ = trained
    delivery.stage("evaluate", expect=NOTHING_TO_DO)
    assert warehouse.query("SELECT count(*) FROM heart_analysis.promotion") == [(1,)]


@pytest.mark.parametrize(
    ("baseline", "slope", "champion", "sites", "outcome"),
    [
        ({"difference": -0.3, "low": -0.35, "high": -0.25, "p_value": 0.0, "people": 303}, 1.0, None, None, "promoted"),
        ({"difference": -0.01, "low": -0.03, "high": 0.01, "p_value": 0.2, "people": 303}, 1.0, None, None, "refused"),
        ({"difference": -0.3, "low": -0.35, "high": -0.25, "p_value": 0.0, "people": 303}, 0.5, None, None, "refused"),
        ({"difference": -0.3, "low": -0.35, "high": -0.25, "p_value": 0.0, "people": 303}, 1.0,
         {"difference": 0.0, "low": -0.01, "high": 0.01, "p_value": 0.5, "people": 303}, {}, "kept champion"),
        ({"difference": -0.3, "low": -0.35, "high": -0.25, "p_value": 0.0, "people": 303}, 1.0,
         {"difference": -0.05, "low": -0.08, "high": -0.02, "p_value": 0.01, "people": 303}, {"b": (0.89, 0.90)}, "promoted"),
        ({"difference": -0.3, "low": -0.35, "high": -0.25, "p_value": 0.0, "people": 303}, 1.0,
         {"difference": -0.05, "low": -0.08, "high": -0.02, "p_value": 0.01, "people": 303}, {"b": (0.85, 0.90)}, "refused"),
        ({"difference": -0.3, "low": -0.35, "high": -0.25, "p_value": 0.0, "people": 303}, 1.0, None, {}, "kept champion"),
    ],
)  # fmt: skip
def test_the_gate(baseline, slope, champion, sites, outcome):
    from gate import decide

    decision = decide({"calibration_slope": {"value": slope, "low": slope, "high": slope}}, baseline, champion, sites)
    assert decision.outcome == outcome and decision.reason

"""predict: a probability for everyone without a diagnosis, again when the record changes, and never twice."""

import re

from support import NOTHING_TO_DO, REFUSED, USAGE, Delivery, Warehouse, draw, make_database, make_warehouse, mlflow_on


def test_people_without_a_diagnosis_are_scored_once_and_again_when_their_record_changes(trained):
    delivery, warehouse, _ = trained
    hospital = Delivery(delivery.folder / "hospital", variables=delivery.variables, runner=delivery.runner)
    ours = "WHERE account_id IN ('N1', 'N2')"
    current = "SELECT account_id, probability, model_version, missing FROM heart_analysis.heart_prediction_current"
    predictions = f"{current} {ours} ORDER BY 1"
    accounts = "account_id;age;sex\nN1;44;0\nN2;67;1\n"
    header = "account_id;cp;trestbps;chol;fbs;restecg;thalach;exang;oldpeak;slope;ca;thal;target\n"
    hospital.write("new", accounts, header + "N1;3;118;242;0;0;149;0;0.3;2;1;3;?\nN2;4;160;286;0;2;108;1;1.5;2;?;?;?\n")
    hospital.etl("new")
    assert hospital.stage("predict").rows == {"in": 2, "out": 2, "rejected": 0, "duplicate": 0}
    (well, ill) = warehouse.query(predictions)
    assert (well[0], well[3], ill[0], ill[3]) == ("N1", [], "N2", ["ca", "thal"])
    assert well[1] < 0.3 < 0.7 < ill[1], "the probability is that of disease"
    hospital.stage("predict", expect=NOTHING_TO_DO)

    # A later measurement for one, a diagnosis for the other.
    hospital.write("new", accounts, header + "N1;3;118;242;0;0;149;0;0.3;2;1;3;0\nN2;4;160;286;0;2;108;1;1.5;2;3;7;?\n")
    hospital.run = "run-2"
    hospital.etl("new")
    assert hospital.stage("predict").rows["out"] == 1
    (again,) = warehouse.query(predictions)
    assert again[0] == "N2" and again[3] == [] and again[1] > ill[1]
    history = f"SELECT account_id, count(*) FROM heart_analysis.heart_prediction {ours} GROUP BY 1 ORDER BY 1"
    assert warehouse.query(history) == [("N1", 1), ("N2", 2)], "history is kept"


def test_a_prediction_says_what_speaks_for_it_and_how_sure_it_can_be(trained):
    delivery, warehouse, outcomes = trained
    # Everyone of a batch, diagnosed or not, on demand.
    outcome = delivery.stage("predict", None, "--scored-batch", "hungary")
    assert outcome.rows["out"] == 294
    found = warehouse.query(
        "SELECT probability, low, high, missing, factors, note, mlflow_run_id "
        "FROM heart_analysis.heart_prediction JOIN heart_analysis.heart_fact USING (account_id) WHERE batch = 'hungary'"
    )
    wide: list[float] = []
    narrow: list[float] = []
    for probability, low, high, missing, factors, note, run_id in found:
        assert 0 < low <= probability + 1e-9 and probability - 1e-9 <= high < 1
        (wide if "ca" in missing else narrow).append(high - low)
        assert 1 <= len(factors) <= 3 and not {factor["feature"] for factor in factors} & set(missing)
        assert ("ca" in missing) == ("ca" in (note or ""))
        assert run_id == outcomes["train"].result["metrics"]["mlflow_run_id"]
    assert sum(wide) / len(wide) > 0.1 and len(wide) > 200
    current = "SELECT count(*) FROM heart_analysis.heart_prediction_current JOIN heart_analysis.heart_fact USING (account_id)"
    assert warehouse.query(f"{current} WHERE batch = 'hungary'") == [(0,)], "people with a diagnosis need no prediction"
    assert "nobody of that name" in delivery.stage("predict", None, "--scored-batch", "nowhere", expect=REFUSED).error


def test_many_people_are_scored_each_once(trained, services, tmp_path):
    """More than are scored at a time, into another warehouse than the champion's."""
    runner, postgres, address = services
    warehouse = Warehouse(make_warehouse(postgres))
    hospital = Delivery(tmp_path, variables=warehouse.environment | {"MLFLOW_TRACKING_URI": address}, runner=runner)
    draw(hospital.data / "many", 45_000)
    loaded = hospital.etl("many")["load"].rows["out"]
    assert hospital.stage("predict", None, "--scored-batch", "many").rows == {
        "in": loaded, "out": loaded, "rejected": 0, "duplicate": 0
    }  # fmt: skip
    scored = "SELECT count(*), count(DISTINCT account_id) FROM heart_analysis.heart_prediction JOIN heart_analysis.heart_fact"
    assert warehouse.query(f"{scored} USING (account_id, load_id)") == [(loaded, loaded)]
    hospital.stage("predict", None, "--scored-batch", "many", expect=NOTHING_TO_DO)


def test_one_person_is_answered_readably_and_written_nowhere(trained):
    delivery, warehouse, _ = trained
    before = warehouse.query("SELECT count(*) FROM heart_analysis.heart_prediction")
    outcome = delivery.stage("predict", None, "--age", 54, "--sex", 1, "--cp", 4)
    first, second, *_, last = outcome.stdout.splitlines()
    (probability,) = map(float, re.findall(r"^Probability of heart disease: (0\.\d\d)$", first))
    ((low, high),) = re.findall(r"10 of 13 findings are not known.* between (\S+) and (\S+) in", second)
    assert float(low) < probability < float(high) and last == "Not for use on patients."
    assert "cp = 4 raises the log-odds" in outcome.stdout
    assert warehouse.query("SELECT count(*) FROM heart_analysis.heart_prediction") == before
    wrong = delivery.stage("predict", None, "--age", 54, "--cp", 9, expect=USAGE)
    assert "'--cp': '9' is not one of '1', '2', '3', '4'" in wrong.stderr


def test_says_what_is_missing(postgres, tmp_path):
    delivery = Delivery(tmp_path, variables=make_warehouse(postgres))
    assert "MLFLOW_TRACKING_URI must be the http address" in delivery.stage("predict", expect=USAGE).stderr
    with mlflow_on(make_database(postgres), tmp_path / "mlflow") as empty:
        outcome = delivery.stage("predict", expect=NOTHING_TO_DO, MLFLOW_TRACKING_URI=empty)
        assert "no model was good enough" in outcome.log[-1]["message"]

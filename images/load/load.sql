-- From staging to the star, inside the transaction of load.py, which binds load_id and batch.
-- A row is written only where something differs, so that load_id and changed_at tell what a delivery really changed.
-- Rows go in by account_id: two loads that touch the same people wait for each other instead of deadlocking.

INSERT INTO heart_analysis.account_dim AS dim (account_id, age, sex, load_id)
SELECT account_id, age, sex, %(load_id)s FROM staging ORDER BY account_id
ON CONFLICT (account_id) DO UPDATE
SET age = excluded.age, sex = excluded.sex, load_id = excluded.load_id, changed_at = now()
WHERE (dim.age, dim.sex) IS DISTINCT FROM (excluded.age, excluded.sex);

INSERT INTO heart_analysis.heart_disease_dim AS dim
    (account_id, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, load_id)
SELECT account_id, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, %(load_id)s
FROM staging ORDER BY account_id
ON CONFLICT (account_id) DO UPDATE
SET cp = excluded.cp, trestbps = excluded.trestbps, chol = excluded.chol, fbs = excluded.fbs, restecg = excluded.restecg,
    thalach = excluded.thalach, exang = excluded.exang, oldpeak = excluded.oldpeak, slope = excluded.slope,
    ca = excluded.ca, thal = excluded.thal, target = excluded.target, load_id = excluded.load_id, changed_at = now()
WHERE (dim.cp, dim.trestbps, dim.chol, dim.fbs, dim.restecg, dim.thalach, dim.exang, dim.oldpeak, dim.slope, dim.ca,
       dim.thal, dim.target)
    IS DISTINCT FROM
      (excluded.cp, excluded.trestbps, excluded.chol, excluded.fbs, excluded.restecg, excluded.thalach, excluded.exang,
       excluded.oldpeak, excluded.slope, excluded.ca, excluded.thal, excluded.target);

WITH written AS (
    INSERT INTO heart_analysis.heart_fact AS fact
        (account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, batch, load_id)
    SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target,
        %(batch)s, %(load_id)s
    FROM staging ORDER BY account_id
    ON CONFLICT (account_id) DO UPDATE
    SET age = excluded.age, sex = excluded.sex, cp = excluded.cp, trestbps = excluded.trestbps, chol = excluded.chol,
        fbs = excluded.fbs, restecg = excluded.restecg, thalach = excluded.thalach, exang = excluded.exang,
        oldpeak = excluded.oldpeak, slope = excluded.slope, ca = excluded.ca, thal = excluded.thal,
        target = excluded.target, batch = excluded.batch, load_id = excluded.load_id, changed_at = now()
    WHERE (fact.age, fact.sex, fact.cp, fact.trestbps, fact.chol, fact.fbs, fact.restecg, fact.thalach, fact.exang,
           fact.oldpeak, fact.slope, fact.ca, fact.thal, fact.target, fact.batch)
        IS DISTINCT FROM
          (excluded.age, excluded.sex, excluded.cp, excluded.trestbps, excluded.chol, excluded.fbs, excluded.restecg,
           excluded.thalach, excluded.exang, excluded.oldpeak, excluded.slope, excluded.ca, excluded.thal,
           excluded.target, excluded.batch)
    -- xmax is 0 in a row that this statement made, and this transaction in one that it changed
    RETURNING xmax = 0 AS inserted
)
SELECT count(*) FILTER (WHERE inserted) AS inserted, count(*) FILTER (WHERE NOT inserted) AS updated FROM written;

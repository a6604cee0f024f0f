-- From staging to the fact table, inside the transaction of load.py, which binds load_id and batch.
-- A row is written only where something differs, so that load_id and changed_at tell what a delivery really changed.
-- Rows go in by account_id: two loads that touch the same people wait for each other instead of deadlocking.

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
        target = excluded.target, load_id = excluded.load_id, changed_at = now()
    -- What another batch brought is not written over: see foreign.sql.
    WHERE fact.batch = excluded.batch
        AND (fact.age, fact.sex, fact.cp, fact.trestbps, fact.chol, fact.fbs, fact.restecg, fact.thalach, fact.exang,
             fact.oldpeak, fact.slope, fact.ca, fact.thal, fact.target)
            IS DISTINCT FROM
            (excluded.age, excluded.sex, excluded.cp, excluded.trestbps, excluded.chol, excluded.fbs, excluded.restecg,
             excluded.thalach, excluded.exang, excluded.oldpeak, excluded.slope, excluded.ca, excluded.thal, excluded.target)
    -- xmax is 0 in a row that this statement made, and this transaction in one that it changed
    RETURNING xmax = 0 AS inserted
)
SELECT count(*) FILTER (WHERE inserted) AS inserted, count(*) FILTER (WHERE NOT inserted) AS updated FROM written;

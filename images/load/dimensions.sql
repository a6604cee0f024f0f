-- From staging to the dimensions, inside the transaction of load.py, which binds load_id; by the rules of fact.sql.

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

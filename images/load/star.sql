-- From staging to the star, inside the transaction of load.py, which binds load_id, batch and file.
-- A row is written only where something differs, so that load_id and changed_at tell what a delivery really changed.
-- Rows go in by account_id: next to each other in every index. New ones go in without asking row by row whether they are
-- there (ON CONFLICT, twice the time): should another batch bring the same people at this very moment, the key refuses this
-- load, and its next try sees them.

-- Whose record is not known as it is: new people, another batch's, and those of whom something is different now. The
-- dimensions hold what the fact table holds.
CREATE TEMP TABLE differing ON COMMIT DROP AS
SELECT * FROM (
    SELECT staging.*, fact.account_id IS NULL AS is_new, fact.batch <> %(batch)s AS is_foreign, fact.batch,
        (fact.age, fact.sex) IS DISTINCT FROM (staging.age, staging.sex) AS person_differs,
        (fact.cp, fact.trestbps, fact.chol, fact.fbs, fact.restecg, fact.thalach, fact.exang, fact.oldpeak, fact.slope, fact.ca,
         fact.thal, fact.target)
        IS DISTINCT FROM
        (staging.cp, staging.trestbps, staging.chol, staging.fbs, staging.restecg, staging.thalach, staging.exang,
         staging.oldpeak, staging.slope, staging.ca, staging.thal, staging.target) AS heart_differs
    FROM staging LEFT JOIN heart_analysis.heart_fact AS fact USING (account_id)
) AS compared
WHERE is_new OR is_foreign OR person_differs OR heart_differs
ORDER BY account_id COLLATE "C";

ANALYZE differing;

-- An account_id that another batch brought first may be another person's: its record is set aside, not written over.
INSERT INTO set_aside (stage, file, line, account_id, column_name, reason, raw)
SELECT 'load', %(file)s, line, account_id, 'account_id',
    format('account_id ''%%s'' came with batch ''%%s'' already; ids must be unique across batches', account_id, batch),
    concat_ws(';', account_id, age, sex, coalesce(cp::text, '?'), coalesce(trestbps::text, '?'), coalesce(chol::text, '?'),
        coalesce(fbs::text, '?'), coalesce(restecg::text, '?'), coalesce(thalach::text, '?'), coalesce(exang::text, '?'),
        coalesce(oldpeak::text, '?'), coalesce(slope::text, '?'), coalesce(ca::text, '?'), coalesce(thal::text, '?'),
        coalesce(target::text, '?'))
FROM differing WHERE is_foreign;

-- Changed ones.
UPDATE heart_analysis.heart_fact AS fact
SET age = record.age, sex = record.sex, cp = record.cp, trestbps = record.trestbps, chol = record.chol, fbs = record.fbs,
    restecg = record.restecg, thalach = record.thalach, exang = record.exang, oldpeak = record.oldpeak, slope = record.slope,
    ca = record.ca, thal = record.thal, target = record.target, load_id = %(load_id)s, changed_at = now()
FROM differing AS record
WHERE fact.account_id = record.account_id AND NOT is_foreign;

UPDATE heart_analysis.account_dim AS dim
SET age = record.age, sex = record.sex, load_id = %(load_id)s, changed_at = now()
FROM differing AS record
WHERE dim.account_id = record.account_id AND NOT is_foreign AND person_differs;

UPDATE heart_analysis.heart_disease_dim AS dim
SET cp = record.cp, trestbps = record.trestbps, chol = record.chol, fbs = record.fbs, restecg = record.restecg,
    thalach = record.thalach, exang = record.exang, oldpeak = record.oldpeak, slope = record.slope, ca = record.ca,
    thal = record.thal, target = record.target, load_id = %(load_id)s, changed_at = now()
FROM differing AS record
WHERE dim.account_id = record.account_id AND NOT is_foreign AND heart_differs;

-- New people.
INSERT INTO heart_analysis.heart_fact
    (account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, batch, load_id)
SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target,
    %(batch)s, %(load_id)s
FROM differing WHERE is_new;

INSERT INTO heart_analysis.account_dim (account_id, age, sex, load_id)
SELECT account_id, age, sex, %(load_id)s FROM differing WHERE is_new;

INSERT INTO heart_analysis.heart_disease_dim
    (account_id, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, load_id)
SELECT account_id, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, %(load_id)s
FROM differing WHERE is_new;

SELECT count(*) FILTER (WHERE is_new) AS inserted,
    count(*) FILTER (WHERE NOT is_foreign) AS updated,
    count(*) FILTER (WHERE is_foreign) AS foreign_records
FROM differing;

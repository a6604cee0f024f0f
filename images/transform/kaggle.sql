-- A delivery in Kaggle's layout, one file that names nobody: the views `heart` and `account`, every value as trimmed text.
-- A person is told by everything but the diagnosis, so that a repeated line is known again, here and in the next delivery.

CREATE VIEW person AS
SELECT line, trim(COLUMNS(* EXCLUDE (line))), concat_ws('|', *COLUMNS(* EXCLUDE (line))) AS content,
    'KAG-' || left(md5(concat_ws('|', trim(age), trim(sex), trim(cp), trim(trestbps), trim(chol), trim(fbs), trim(restecg),
        trim(thalach), trim(exang), trim(oldpeak), trim(slope), trim(ca), trim(thal))), 16) AS account_id
FROM heart_line;

CREATE VIEW heart AS SELECT * EXCLUDE (age, sex) FROM person;

-- One account for each person, so that no line of it is left over.
CREATE VIEW account AS
SELECT min(line) AS line, account_id, min(age) AS age, min(sex) AS sex, '' AS content FROM person GROUP BY account_id;

CREATE VIEW heart_raw AS
SELECT CAST(regexp_extract(text, '^\d+') AS BIGINT) AS line, regexp_replace(text, '^\d+.', '') AS raw FROM heart_text;

-- The whole record is in its line of `heart`.
CREATE VIEW account_raw AS SELECT NULL::BIGINT AS line, NULL::VARCHAR AS raw WHERE false;

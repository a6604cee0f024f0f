-- From the two files of a delivery to records: which line belongs to which, and what is wrong with it.
-- The views `heart` and `account` give the lines as they were read: line, account_id, content (all values in one text), values.
-- A record is a line of `heart` with its line of `account`; an account line that belongs to none is a record of its own.
--
-- What is as long as the delivery is read, joined or sorted once, which DuckDB does on disk where memory ends; the rest is
-- small: account ids that stand on several lines, and lines with something wrong.

-- What stands in the columns: few different texts, however long the delivery. Each is judged once, and lines look theirs up.
CREATE TABLE said AS
SELECT DISTINCT name, text
FROM (UNPIVOT heart ON cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target INTO NAME name VALUE text)
UNION
SELECT DISTINCT name, text FROM (UNPIVOT account ON age, sex INTO NAME name VALUE text);

-- THE COLUMNS of a record: what each may hold, as value, error and note (see schema.sql).
CREATE TABLE meaning AS
SELECT
    name, text,
    unnest(CASE name
        WHEN 'age' THEN measured(name, text, 'years', 0, 120)
        WHEN 'sex' THEN coded(name, text, yes_no())
        WHEN 'cp' THEN coded(name, text, cp_codes(getvariable('dialect')))
        WHEN 'trestbps' THEN measured(name, text, 'mm Hg', 50, 300, zero_is_missing := true)
        WHEN 'chol' THEN measured(name, text, 'mg/dl', 50, 1000, zero_is_missing := true)
        WHEN 'fbs' THEN coded(name, text, yes_no())
        WHEN 'restecg' THEN coded(name, text, restecg_codes(getvariable('dialect')))
        WHEN 'thalach' THEN measured(name, text, 'bpm', 30, 250)
        WHEN 'exang' THEN coded(name, text, yes_no())
        WHEN 'oldpeak' THEN measured(name, text, 'mm of ST depression', -10, 10, whole := false)
        WHEN 'slope' THEN coded(name, text, slope_codes(getvariable('dialect')))
        WHEN 'ca' THEN coded(name, text, ca_codes(getvariable('dialect')))
        WHEN 'thal' THEN coded(name, text, thal_codes(getvariable('dialect')))
        WHEN 'target' THEN coded(name, text, target_codes(getvariable('dialect')))
    END),
    is_code(name, text, getvariable('dialect')) AS fits_this,
    is_code(name, text, getvariable('other')) AS fits_other
FROM said;

-- A line's values, and all that is wrong with it: messages, and the columns that they are of.
CREATE TABLE heart_judged AS
SELECT
    line, account_id, account_id_error(account_id) AS id_error,
    cp.fits_this AND slope.fits_this AND ca.fits_this AND thal.fits_this AS fits_this,
    cp.fits_other AND slope.fits_other AND ca.fits_other AND thal.fits_other AS fits_other,
    concat_ws('; ', cp.error, trestbps.error, chol.error, fbs.error, restecg.error, thalach.error, exang.error, oldpeak.error, slope.error, ca.error, thal.error, target.error) AS errors,
    concat_ws(',', if(cp.error <> '', 'cp', NULL), if(trestbps.error <> '', 'trestbps', NULL), if(chol.error <> '', 'chol', NULL), if(fbs.error <> '', 'fbs', NULL), if(restecg.error <> '', 'restecg', NULL), if(thalach.error <> '', 'thalach', NULL), if(exang.error <> '', 'exang', NULL), if(oldpeak.error <> '', 'oldpeak', NULL), if(slope.error <> '', 'slope', NULL), if(ca.error <> '', 'ca', NULL), if(thal.error <> '', 'thal', NULL), if(target.error <> '', 'target', NULL)) AS columns,
    trestbps.note AS trestbps_note, chol.note AS chol_note, oldpeak.note AS oldpeak_note,
    cp.value::SMALLINT AS cp, trestbps.value::SMALLINT AS trestbps, chol.value::SMALLINT AS chol, fbs.value::SMALLINT AS fbs, restecg.value::SMALLINT AS restecg, thalach.value::SMALLINT AS thalach, exang.value::SMALLINT AS exang, oldpeak.value::DOUBLE AS oldpeak, slope.value::SMALLINT AS slope, ca.value::SMALLINT AS ca, thal.value::SMALLINT AS thal, target.value::SMALLINT AS target
FROM heart
LEFT JOIN meaning AS cp ON cp.name = 'cp' AND cp.text = heart.cp
LEFT JOIN meaning AS trestbps ON trestbps.name = 'trestbps' AND trestbps.text = heart.trestbps
LEFT JOIN meaning AS chol ON chol.name = 'chol' AND chol.text = heart.chol
LEFT JOIN meaning AS fbs ON fbs.name = 'fbs' AND fbs.text = heart.fbs
LEFT JOIN meaning AS restecg ON restecg.name = 'restecg' AND restecg.text = heart.restecg
LEFT JOIN meaning AS thalach ON thalach.name = 'thalach' AND thalach.text = heart.thalach
LEFT JOIN meaning AS exang ON exang.name = 'exang' AND exang.text = heart.exang
LEFT JOIN meaning AS oldpeak ON oldpeak.name = 'oldpeak' AND oldpeak.text = heart.oldpeak
LEFT JOIN meaning AS slope ON slope.name = 'slope' AND slope.text = heart.slope
LEFT JOIN meaning AS ca ON ca.name = 'ca' AND ca.text = heart.ca
LEFT JOIN meaning AS thal ON thal.name = 'thal' AND thal.text = heart.thal
LEFT JOIN meaning AS target ON target.name = 'target' AND target.text = heart.target;

CREATE TABLE account_judged AS
SELECT
    line, account_id,
    concat_ws('; ', age.error, sex.error) AS errors,
    concat_ws(',', if(age.error <> '', 'age', NULL), if(sex.error <> '', 'sex', NULL)) AS columns,
    age.value::SMALLINT AS age, sex.value::SMALLINT AS sex
FROM account
LEFT JOIN meaning AS age ON age.name = 'age' AND age.text = account.age
LEFT JOIN meaning AS sex ON sex.name = 'sex' AND sex.text = account.sex;

-- Account ids that stand on several lines, and whether the lines differ.
CREATE TABLE heart_repeated AS
SELECT account_id, min(line) AS first_line, count(*) AS lines, min(content) <> max(content) AS differ
FROM heart
WHERE account_id IN (SELECT account_id FROM heart_judged WHERE account_id <> '' GROUP BY account_id HAVING count(*) > 1)
GROUP BY account_id;

CREATE TABLE account_repeated AS
SELECT account_id, min(line) AS first_line, count(*) AS lines, min(content) <> max(content) AS differ
FROM account
WHERE account_id IN (SELECT account_id FROM account_judged WHERE account_id <> '' GROUP BY account_id HAVING count(*) > 1)
GROUP BY account_id;

CREATE MACRO differing(lines, place) AS format('account_id stands on {} lines{} with different values; deliver the right one', lines, place);

-- A record: a line of `heart`, the line of `account` that goes with it, their values and all that is wrong with them.
-- An account without a line of `heart` has no `line`.
CREATE TABLE judged AS
WITH account AS (
    SELECT account_judged.*, account_repeated.lines, coalesce(account_repeated.differ, false) AS differ
    FROM account_judged LEFT JOIN account_repeated USING (account_id)
    WHERE account_id <> '' AND line = coalesce(first_line, line)
), record AS (
    SELECT
        heart.line,
        coalesce(heart.account_id, account.account_id) AS account_id,
        account.line AS account_line,
        if(heart.line > first_line AND NOT heart_repeated.differ, first_line, NULL) AS same_as_line,
        CASE
            WHEN heart.line IS NULL AND account.differ THEN differing(account.lines, '')
            WHEN heart.line IS NULL THEN 'no heart record has this account_id; deliver its line of heart_raw.csv'
            WHEN heart.account_id = '' THEN 'account_id is missing'
            WHEN heart_repeated.differ THEN differing(heart_repeated.lines, '')
            WHEN account.line IS NULL THEN 'no account has this account_id; deliver its line of account_raw.csv'
            WHEN account.differ THEN differing(account.lines, ' of account_raw.csv')
        END AS fate,
        heart.id_error,
        account.errors AS account_errors, account.columns AS account_columns, heart.errors AS heart_errors,
        heart.columns AS heart_columns, account.age, account.sex,
        heart.* EXCLUDE (line, account_id, id_error, errors, columns, fits_this, fits_other)
    FROM heart_judged AS heart
    FULL JOIN account ON account.account_id = heart.account_id
    LEFT JOIN heart_repeated ON heart_repeated.account_id = heart.account_id
)
SELECT
    * EXCLUDE (fate, id_error, account_errors, account_columns, heart_errors, heart_columns),
    if(line IS NULL, fate, concat_ws('; ', fate, id_error, nullif(account_errors, ''), nullif(heart_errors, ''))) AS reason,
    if(line IS NULL, 'account_id', concat_ws(',', if(concat(fate, id_error) <> '', 'account_id', NULL),
        nullif(account_columns, ''), nullif(heart_columns, ''))) AS columns
FROM record;

-- The lines of `account` that go with nothing: without an account_id, or repeated.
CREATE TABLE account_rest AS
SELECT line, account_id, if(differ, NULL, first_line) AS same_as_line,
    CASE WHEN account_id = '' THEN 'account_id is missing' WHEN differ THEN differing(lines, '') END AS reason
FROM account_judged LEFT JOIN account_repeated USING (account_id)
WHERE account_id = '' OR line > first_line;

-- THE OUTPUTS: records by account_id, the others in the order of the delivery. `delivered` holds the names of its files.

CREATE VIEW records AS
SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, line
FROM judged WHERE reason = '' AND same_as_line IS NULL ORDER BY account_id;

-- The raw text of a record is its line of `heart`, and under it its line of `account` where it has one.
CREATE TABLE rejected AS
SELECT if(line IS NULL, delivered.account, delivered.heart) AS file, coalesce(line, account_line) AS line, account_id, columns,
    reason, line AS heart_line, account_line
FROM judged, delivered WHERE reason <> '' AND same_as_line IS NULL
UNION ALL
SELECT delivered.account, line, account_id, 'account_id', reason, NULL, line
FROM account_rest, delivered WHERE same_as_line IS NULL;

CREATE TABLE quarantined AS
SELECT rejected.file, rejected.line, account_id, columns AS "column", reason,
    concat_ws(chr(10), heart_raw.raw, account_raw.raw) AS raw
FROM rejected
LEFT JOIN heart_raw ON heart_raw.line = rejected.heart_line
LEFT JOIN account_raw ON account_raw.line = rejected.account_line;

CREATE VIEW quarantine AS FROM quarantined ORDER BY file, line;

CREATE VIEW duplicates AS
SELECT delivered.heart AS file, line, account_id, same_as_line FROM judged, delivered WHERE same_as_line IS NOT NULL
UNION ALL
SELECT delivered.account, line, account_id, same_as_line FROM account_rest, delivered WHERE same_as_line IS NOT NULL
ORDER BY 1, 2;

-- What a reader of the result should know: how many of the records are undiagnosed, and how often each note stands.
CREATE VIEW notes AS
WITH alike AS (
    SELECT [trestbps_note, chol_note, oldpeak_note, if(target IS NULL, 'undiagnosed', NULL)] AS notes, count(*) AS records
    FROM judged WHERE reason = '' AND same_as_line IS NULL GROUP BY ALL
)
SELECT note, sum(records)::BIGINT AS records FROM (SELECT unnest(notes) AS note, records FROM alike)
WHERE note IS NOT NULL GROUP BY note ORDER BY note;

CREATE VIEW counts AS
SELECT (SELECT count(*) FROM judged) + (SELECT count(*) FROM account_rest) AS "in",
    (SELECT count(*) FROM judged WHERE reason = '' AND same_as_line IS NULL) AS records,
    (SELECT count(*) FROM quarantined) AS quarantine,
    (SELECT count(*) FROM duplicates) AS duplicates;

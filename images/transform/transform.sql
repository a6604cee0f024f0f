-- From the two files of a delivery to records: which line belongs to which, and what is wrong with it.
-- `heart` and `account` hold the lines as they were read: line, account_id, content (all values in one text), values.
-- A record is a line of `heart` with its line of `account`; an account line that belongs to none is a record of its own.

-- Account ids that stand on several lines: `versions` says whether the lines are all equal.
CREATE TEMP TABLE heart_key AS
SELECT account_id, min(line) AS first_line, count(*) AS lines, count(DISTINCT content) AS versions
FROM heart GROUP BY account_id;

CREATE TEMP TABLE account_key AS
SELECT account_id, min(line) AS first_line, count(*) AS lines, count(DISTINCT content) AS versions
FROM account GROUP BY account_id;

-- A line of `heart`, its fate, and the line of `account` that goes with it.
CREATE TEMP TABLE heart_fate AS
SELECT
    heart.line,
    heart.account_id,
    account.line AS account_line,
    CASE WHEN heart_key.versions = 1 AND heart.line > heart_key.first_line AND heart.account_id <> ''
        THEN heart_key.first_line END AS same_as_line,
    CASE
        WHEN heart.account_id = '' THEN 'account_id is missing'
        WHEN heart_key.versions > 1
            THEN format('account_id stands on {} lines with different values; deliver the right one', heart_key.lines)
        WHEN account.line IS NULL THEN 'no account has this account_id; deliver its line of account_raw.csv'
        WHEN account_key.versions > 1
            THEN format('account_id stands on {} lines of account_raw.csv with different values; deliver the right one',
                        account_key.lines)
    END AS reason
FROM heart
JOIN heart_key USING (account_id)
LEFT JOIN account_key USING (account_id)
LEFT JOIN account ON account.line = account_key.first_line AND heart.account_id <> '';

-- The lines of `account` that belong to no line of `heart`.
CREATE TEMP TABLE account_fate AS
SELECT
    account.line,
    account.account_id,
    CASE WHEN account_key.versions = 1 AND account.line > account_key.first_line AND account.account_id <> ''
        THEN account_key.first_line END AS same_as_line,
    CASE
        WHEN account.account_id = '' THEN 'account_id is missing'
        WHEN account_key.versions > 1
            THEN format('account_id stands on {} lines with different values; deliver the right one', account_key.lines)
        WHEN heart_key.account_id IS NULL THEN 'no heart record has this account_id; deliver its line of heart_raw.csv'
    END AS reason
FROM account
JOIN account_key USING (account_id)
LEFT JOIN heart_key USING (account_id)
WHERE account.account_id = '' OR heart_key.account_id IS NULL OR account.line > account_key.first_line;

CREATE TEMP TABLE joined AS
SELECT heart_fate.*, account.age, account.sex, heart.* EXCLUDE (line, account_id, content)
FROM heart_fate
JOIN heart USING (line)
LEFT JOIN account ON account.line = heart_fate.account_line;

-- THE COLUMNS of a record: what each may hold, as value, error and note (see schema.sql).
CREATE TEMP TABLE checked AS
SELECT
    line, account_id, account_line, same_as_line, reason, account_id_error(account_id) AS id_error,
    measured('age', age, 'years', 0, 120) AS age,
    coded('sex', sex, yes_no()) AS sex,
    coded('cp', cp, cp_codes(getvariable('dialect'))) AS cp,
    measured('trestbps', trestbps, 'mm Hg', 50, 300, zero_is_missing := true) AS trestbps,
    measured('chol', chol, 'mg/dl', 50, 1000, zero_is_missing := true) AS chol,
    coded('fbs', fbs, yes_no()) AS fbs,
    coded('restecg', restecg, restecg_codes(getvariable('dialect'))) AS restecg,
    measured('thalach', thalach, 'bpm', 30, 250) AS thalach,
    coded('exang', exang, yes_no()) AS exang,
    measured('oldpeak', oldpeak, 'mm of ST depression', -10, 10, whole := false) AS oldpeak,
    coded('slope', slope, slope_codes(getvariable('dialect'))) AS slope,
    coded('ca', ca, ca_codes(getvariable('dialect'))) AS ca,
    coded('thal', thal, thal_codes(getvariable('dialect'))) AS thal,
    coded('target', target, target_codes(getvariable('dialect'))) AS target
FROM joined;

-- A line of `heart` with its canonical values and all that is wrong with it.
CREATE TEMP TABLE judged AS
SELECT
    line, account_id, account_line, same_as_line,
    nullif(concat_ws('; ', reason, id_error, age.error, sex.error, cp.error, trestbps.error, chol.error, fbs.error,
        restecg.error, thalach.error, exang.error, oldpeak.error, slope.error, ca.error, thal.error, target.error), '') AS reason,
    concat_ws(',', if(concat(reason, id_error) <> '', 'account_id', NULL),
        if(age.error <> '', 'age', NULL), if(sex.error <> '', 'sex', NULL), if(cp.error <> '', 'cp', NULL),
        if(trestbps.error <> '', 'trestbps', NULL), if(chol.error <> '', 'chol', NULL), if(fbs.error <> '', 'fbs', NULL),
        if(restecg.error <> '', 'restecg', NULL), if(thalach.error <> '', 'thalach', NULL), if(exang.error <> '', 'exang', NULL),
        if(oldpeak.error <> '', 'oldpeak', NULL), if(slope.error <> '', 'slope', NULL), if(ca.error <> '', 'ca', NULL),
        if(thal.error <> '', 'thal', NULL), if(target.error <> '', 'target', NULL)) AS columns,
    [trestbps.note, chol.note, oldpeak.note] AS notes,
    {'age': CAST(age.value AS INT), 'sex': CAST(sex.value AS INT), 'cp': CAST(cp.value AS INT),
     'trestbps': CAST(trestbps.value AS INT), 'chol': CAST(chol.value AS INT), 'fbs': CAST(fbs.value AS INT),
     'restecg': CAST(restecg.value AS INT), 'thalach': CAST(thalach.value AS INT), 'exang': CAST(exang.value AS INT),
     'oldpeak': CAST(oldpeak.value AS DOUBLE), 'slope': CAST(slope.value AS INT), 'ca': CAST(ca.value AS INT),
     'thal': CAST(thal.value AS INT), 'target': CAST(target.value AS INT)} AS record
FROM checked;

-- THE OUTPUTS, in the order of the delivery. `delivered` holds the names of its files.

CREATE VIEW records AS
SELECT account_id, record.*, line FROM judged WHERE reason IS NULL AND same_as_line IS NULL ORDER BY line;

-- The raw text of a record is its line of `heart`, and under it its line of `account` where it has one.
CREATE TEMP TABLE rejected AS
SELECT delivered.heart AS file, line, account_id, columns, reason, line AS heart_line, account_line
FROM judged, delivered WHERE reason IS NOT NULL AND same_as_line IS NULL
UNION ALL
SELECT delivered.account, line, account_id, 'account_id', reason, NULL, line
FROM account_fate, delivered WHERE same_as_line IS NULL;

CREATE TEMP TABLE quarantine AS
SELECT rejected.file, rejected.line, account_id, columns AS "column", reason,
    concat_ws(chr(10), heart_raw.raw, account_raw.raw) AS raw
FROM rejected
LEFT JOIN heart_raw ON heart_raw.line = rejected.heart_line
LEFT JOIN account_raw ON account_raw.line = rejected.account_line
ORDER BY rejected.file, rejected.line;

CREATE VIEW duplicates AS
SELECT delivered.heart AS file, line, account_id, same_as_line FROM judged, delivered WHERE same_as_line IS NOT NULL
UNION ALL
SELECT delivered.account, line, account_id, same_as_line FROM account_fate, delivered WHERE same_as_line IS NOT NULL
ORDER BY 1, 2;

-- What a reader of the result should know: how many of the records are undiagnosed, and how often each note stands.
CREATE VIEW notes AS
SELECT note, count(*) AS records
FROM (SELECT unnest(list_filter(notes || [if(record.target IS NULL, 'undiagnosed', NULL)], lambda n: n IS NOT NULL)) AS note
      FROM judged WHERE reason IS NULL AND same_as_line IS NULL)
GROUP BY note ORDER BY note;

CREATE VIEW counts AS
SELECT (SELECT count(*) FROM heart_fate) + (SELECT count(*) FROM account_fate) AS "in",
    (SELECT count(*) FROM records) AS records,
    (SELECT count(*) FROM quarantine) AS quarantine,
    (SELECT count(*) FROM duplicates) AS duplicates;

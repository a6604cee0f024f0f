-- A delivery in UCI's layout, two files: the views `heart` and `account`, every value as trimmed text.
-- content: all values of a line in one text, to see whether two lines are equal.

CREATE VIEW heart AS
SELECT line, trim(account_id) AS account_id, trim(COLUMNS(* EXCLUDE (line, account_id))),
    concat_ws('|', *COLUMNS(* EXCLUDE (line, account_id))) AS content
FROM heart_line;

CREATE VIEW account AS
SELECT line, trim(account_id) AS account_id, trim(age) AS age, trim(sex) AS sex, concat_ws('|', age, sex) AS content
FROM account_line;

-- extract's lines begin with their number and the delimiter, which are not part of the raw text.
CREATE VIEW heart_raw AS
SELECT CAST(regexp_extract(text, '^\d+') AS BIGINT) AS line, regexp_replace(text, '^\d+.', '') AS raw FROM heart_text;

CREATE VIEW account_raw AS
SELECT CAST(regexp_extract(text, '^\d+') AS BIGINT) AS line, regexp_replace(text, '^\d+.', '') AS raw FROM account_text;

-- The warehouse: a star of people and their heart examinations, and what a later reader needs to trust it.
-- Every file in this folder can be applied again: in order, by the owner, in one transaction each.
--
-- Canonical codes are UCI's; missing is NULL; target 1 = disease present. Units: age years, trestbps mm Hg, chol mg/dl,
-- thalach bpm, oldpeak mm of ST depression.

CREATE SCHEMA IF NOT EXISTS heart_analysis;
COMMENT ON SCHEMA heart_analysis IS 'Heart-disease records, models judged on them, and predictions.';
SET search_path = heart_analysis;

-- One row for each time a batch was loaded; the row with the highest load_id is a batch's current state.
CREATE TABLE IF NOT EXISTS load_batch (
    load_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch varchar NOT NULL,
    run varchar NOT NULL,
    dialect varchar NOT NULL,
    source jsonb NOT NULL,
    content_hash char(64) NOT NULL,
    image varchar NOT NULL,
    rows_in bigint NOT NULL CHECK (rows_in >= 0),
    rows_loaded bigint NOT NULL CHECK (rows_loaded >= 0),
    rows_quarantined bigint NOT NULL CHECK (rows_quarantined >= 0),
    rows_duplicate bigint NOT NULL CHECK (rows_duplicate >= 0),
    rows_inserted bigint NOT NULL DEFAULT 0,
    rows_updated bigint NOT NULL DEFAULT 0,
    rows_unchanged bigint NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT rows_balance CHECK (rows_in = rows_loaded + rows_quarantined + rows_duplicate),
    CONSTRAINT loaded_rows_balance CHECK (rows_loaded = rows_inserted + rows_updated + rows_unchanged)
);
COMMENT ON TABLE load_batch IS 'Every load of a batch: where it came from, what was in it, what became of it.';
COMMENT ON COLUMN load_batch.source IS 'Delivered files: [{uri, sha256, rows}].';
COMMENT ON COLUMN load_batch.content_hash IS 'SHA-256 over the canonical records and the quarantined ones.';
CREATE INDEX IF NOT EXISTS load_batch_newest ON load_batch (batch, load_id DESC);

-- The star. load_id names the load that wrote a row last; no foreign key checks it, which would cost a look-up a row.

CREATE TABLE IF NOT EXISTS account_dim (
    account_id varchar PRIMARY KEY,
    age int CHECK (age BETWEEN 0 AND 120),
    sex int CHECK (sex IN (0, 1)),
    load_id bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE account_dim IS 'People: age in years, sex 0 female 1 male.';

CREATE TABLE IF NOT EXISTS heart_disease_dim (
    account_id varchar PRIMARY KEY,
    cp int CHECK (cp IN (1, 2, 3, 4)),
    trestbps int CHECK (trestbps BETWEEN 50 AND 300),
    chol int CHECK (chol BETWEEN 50 AND 1000),
    fbs int CHECK (fbs IN (0, 1)),
    restecg int CHECK (restecg IN (0, 1, 2)),
    thalach int CHECK (thalach BETWEEN 30 AND 250),
    exang int CHECK (exang IN (0, 1)),
    oldpeak float CHECK (oldpeak BETWEEN -10 AND 10),
    slope int CHECK (slope IN (1, 2, 3)),
    ca int CHECK (ca IN (0, 1, 2, 3)),
    thal int CHECK (thal IN (3, 6, 7)),
    target int CHECK (target IN (0, 1)),
    load_id bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE heart_disease_dim IS 'What was examined and found: target 1 disease, 0 none, NULL not yet diagnosed.';

CREATE TABLE IF NOT EXISTS heart_fact (
    account_id varchar PRIMARY KEY,
    age int CHECK (age BETWEEN 0 AND 120),
    sex int CHECK (sex IN (0, 1)),
    cp int CHECK (cp IN (1, 2, 3, 4)),
    trestbps int CHECK (trestbps BETWEEN 50 AND 300),
    chol int CHECK (chol BETWEEN 50 AND 1000),
    fbs int CHECK (fbs IN (0, 1)),
    restecg int CHECK (restecg IN (0, 1, 2)),
    thalach int CHECK (thalach BETWEEN 30 AND 250),
    exang int CHECK (exang IN (0, 1)),
    oldpeak float CHECK (oldpeak BETWEEN -10 AND 10),
    slope int CHECK (slope IN (1, 2, 3)),
    ca int CHECK (ca IN (0, 1, 2, 3)),
    thal int CHECK (thal IN (3, 6, 7)),
    target int CHECK (target IN (0, 1)),
    batch varchar NOT NULL,
    load_id bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE heart_fact IS 'One examination of one person, whole: what models are trained on and predictions made for.';
CREATE INDEX IF NOT EXISTS heart_fact_undiagnosed ON heart_fact (account_id) WHERE target IS NULL;

-- The pattern of the temporary table in which a load compares its records with what is known: no two loads share one.
CREATE TABLE IF NOT EXISTS heart_staging (
    account_id varchar NOT NULL,
    age int, sex int, cp int, trestbps int, chol int, fbs int, restecg int, thalach int, exang int, oldpeak float,
    slope int, ca int, thal int, target int, line bigint
);
COMMENT ON TABLE heart_staging IS 'Always empty: loads make temporary tables like it.';

CREATE TABLE IF NOT EXISTS quarantine (
    quarantine_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    load_id bigint NOT NULL REFERENCES load_batch,
    stage varchar NOT NULL,
    file varchar NOT NULL,
    line bigint NOT NULL,
    account_id varchar,
    column_name varchar,
    reason varchar NOT NULL,
    raw text NOT NULL
);
COMMENT ON TABLE quarantine IS 'Records that could not be loaded, why, and what they said; fixed at the source, the next delivery loads them.';
CREATE INDEX IF NOT EXISTS quarantine_of_load ON quarantine (load_id);

CREATE OR REPLACE VIEW quarantine_current AS
SELECT load_batch.batch, quarantine.*
FROM quarantine
JOIN load_batch USING (load_id)
WHERE load_id IN (SELECT max(load_id) FROM load_batch GROUP BY batch);
COMMENT ON VIEW quarantine_current IS 'What is still wrong with the newest delivery of each batch.';

-- ST depression below 0 is a fact of the record but no depression: models take it for not measured.
CREATE OR REPLACE VIEW heart_feature AS
SELECT account_id, age::float, sex::float, cp::float, trestbps::float, chol::float, fbs::float, restecg::float,
    thalach::float, exang::float, CASE WHEN oldpeak >= 0 THEN oldpeak END AS oldpeak, slope::float, ca::float, thal::float,
    target, batch, load_id
FROM heart_fact;
COMMENT ON VIEW heart_feature IS 'What models see of a record: 13 features as floats, NULL where not known; never the batch.';

-- More people make a model hardly better: docs/modelling.md has the learning curves. People are drawn by a hash of the
-- account_id: as a batch grows some are no longer drawn, and the others stay.
CREATE OR REPLACE VIEW heart_sample AS
SELECT feature.*, size.people AS drawn_from
FROM heart_feature AS feature
JOIN (SELECT batch, target IS NULL AS undiagnosed, count(*) AS people FROM heart_fact GROUP BY batch, target IS NULL) AS size
    ON size.batch = feature.batch AND size.undiagnosed = (feature.target IS NULL)
WHERE size.people <= 5000
    OR ('x' || left(encode(sha256(convert_to(account_id, 'UTF8')), 'hex'), 8))::bit(32)::bigint * size.people < 5000 * 2^32;
COMMENT ON VIEW heart_sample IS
    'Who models are trained and judged on: of each batch all people, or about 5000 with a diagnosis and as many without; drawn_from tells of how many.';

-- What was found about models, which of them served when, and what they predicted. Rows are added, never changed.

SET search_path = heart_analysis;

CREATE TABLE IF NOT EXISTS model_evaluation (
    model_name varchar NOT NULL,
    model_version int NOT NULL,
    -- where the people were: a batch's name; trained: whether they are of the batches that the model was trained on,
    -- where each was judged by a model that had not seen them
    batch varchar NOT NULL,
    trained boolean NOT NULL,
    metric varchar NOT NULL,
    value float,
    low float,
    high float,
    people int NOT NULL CHECK (people > 0),
    run varchar NOT NULL,
    mlflow_run_id varchar NOT NULL,
    evaluated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_name, model_version, run, batch, metric)
);
COMMENT ON TABLE model_evaluation IS 'How good a model version is, by batch, with the 95 % interval of each metric.';

CREATE TABLE IF NOT EXISTS promotion (
    promotion_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_name varchar NOT NULL,
    decision varchar NOT NULL CHECK (decision IN ('promoted', 'kept champion', 'refused', 'rolled back')),
    from_version int,
    to_version int,
    candidate_version int NOT NULL,
    reason varchar NOT NULL,
    decided_by varchar NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE promotion IS 'Every decision about which model version is the champion, and why.';
-- Warehouses from before a champion could be taken back.
ALTER TABLE promotion DROP CONSTRAINT IF EXISTS promotion_decision_check;
ALTER TABLE promotion ADD CONSTRAINT promotion_decision_check
    CHECK (decision IN ('promoted', 'kept champion', 'refused', 'rolled back'));

CREATE OR REPLACE VIEW champion_history AS
SELECT model_name, to_version AS version, decided_at AS since,
    lead(decided_at) OVER (PARTITION BY model_name ORDER BY promotion_id) AS until, decision, reason, decided_by
FROM promotion
WHERE decision IN ('promoted', 'rolled back')
ORDER BY promotion_id;
COMMENT ON VIEW champion_history IS 'Which model version was the champion from when until when (NULL: still), and why.';

CREATE TABLE IF NOT EXISTS drift (
    model_name varchar NOT NULL,
    -- the version with whose training people a batch was compared: the champion at that time
    model_version int NOT NULL,
    batch varchar NOT NULL,
    feature varchar NOT NULL,
    stability_index float NOT NULL,
    p_value float NOT NULL,
    drifted boolean NOT NULL,
    run varchar NOT NULL,
    measured_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_name, model_version, run, batch, feature)
);
COMMENT ON TABLE drift IS 'How unlike the people that a model was trained on the people of a batch are, feature by feature.';

CREATE TABLE IF NOT EXISTS heart_prediction (
    prediction_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id varchar NOT NULL,
    probability float NOT NULL CHECK (probability BETWEEN 0 AND 1),
    model_name varchar NOT NULL,
    model_version int NOT NULL,
    -- the load that wrote the record as it was scored: a record that changes is scored again
    load_id bigint NOT NULL REFERENCES load_batch,
    missing varchar[] NOT NULL,
    run varchar NOT NULL,
    predicted_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (account_id, model_name, model_version, load_id)
);
COMMENT ON TABLE heart_prediction IS 'Probability of heart disease for people without a diagnosis; missing lists what was not known of them.';

-- low and high: where the probability would lie in 95 % of cases, were the missing features known; factors: what moves the
-- log-odds most, [{feature, value, effect}]; note: what is odd about the record.
ALTER TABLE heart_prediction ADD COLUMN IF NOT EXISTS low float CHECK (low BETWEEN 0 AND 1);
ALTER TABLE heart_prediction ADD COLUMN IF NOT EXISTS high float CHECK (high BETWEEN 0 AND 1);
ALTER TABLE heart_prediction ADD COLUMN IF NOT EXISTS factors jsonb;
ALTER TABLE heart_prediction ADD COLUMN IF NOT EXISTS note varchar;
ALTER TABLE heart_prediction ADD COLUMN IF NOT EXISTS mlflow_run_id varchar;

CREATE OR REPLACE VIEW heart_prediction_current AS
SELECT DISTINCT ON (account_id) heart_prediction.*
FROM heart_prediction
JOIN heart_fact USING (account_id)
WHERE heart_fact.target IS NULL
ORDER BY account_id,
    coalesce(model_version = (SELECT version FROM champion_history ORDER BY since DESC LIMIT 1), false) DESC,
    prediction_id DESC;
COMMENT ON VIEW heart_prediction_current IS 'The champion''s newest prediction for each person who still has no diagnosis.';

CREATE OR REPLACE VIEW warehouse_counts AS
SELECT (SELECT count(*) FROM account_dim) AS account_dim,
    (SELECT count(*) FROM heart_disease_dim) AS heart_disease_dim,
    (SELECT count(*) FROM heart_fact) AS heart_fact,
    (SELECT count(*) FROM quarantine) AS quarantine,
    (SELECT count(*) FROM heart_prediction) AS heart_prediction;
COMMENT ON VIEW warehouse_counts IS 'Rows of the tables that a run''s summary shows.';

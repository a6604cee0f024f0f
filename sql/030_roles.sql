-- Who may do what in the warehouse: each stage what it needs, analysts read, nobody but the owner changes a table's shape.
-- Roles belong to the whole server; where stages log in as the owner, as in `make run`, they are not used.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['heart_load', 'heart_train', 'heart_evaluate', 'heart_predict', 'heart_analyst'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- made by another session at the same moment
        END;
    END LOOP;
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA heart_analysis TO heart_load, heart_train, heart_evaluate, heart_predict, heart_analyst;

GRANT SELECT, INSERT, UPDATE ON heart_analysis.account_dim, heart_analysis.heart_disease_dim, heart_analysis.heart_fact,
    heart_analysis.load_batch TO heart_load;
GRANT SELECT, INSERT ON heart_analysis.quarantine TO heart_load;
GRANT SELECT ON heart_analysis.heart_staging TO heart_load;

GRANT SELECT ON heart_analysis.heart_sample TO heart_train, heart_evaluate;
GRANT SELECT ON heart_analysis.heart_feature TO heart_predict;
REVOKE SELECT ON heart_analysis.heart_feature FROM heart_train, heart_evaluate;  -- which had it once
GRANT SELECT ON heart_analysis.load_batch TO heart_train, heart_evaluate;
GRANT SELECT, INSERT ON heart_analysis.model_evaluation, heart_analysis.promotion, heart_analysis.drift TO heart_evaluate;
GRANT SELECT, INSERT ON heart_analysis.heart_prediction TO heart_predict;

GRANT SELECT ON ALL TABLES IN SCHEMA heart_analysis TO heart_analyst;

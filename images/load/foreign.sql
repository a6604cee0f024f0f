-- An account_id that another batch brought first may be another person's: its record is set aside, not written over.
-- After the fact table's upsert, so that a batch that was loaded at the same moment is seen too.

WITH foreign_record AS (
    DELETE FROM staging USING heart_analysis.heart_fact AS fact
    WHERE fact.account_id = staging.account_id AND fact.batch <> %(batch)s
    RETURNING staging.*, fact.batch
)
INSERT INTO set_aside (stage, file, line, account_id, column_name, reason, raw)
SELECT 'load', %(file)s, line, account_id, 'account_id',
    format('account_id ''%%s'' came with batch ''%%s'' already; ids must be unique across batches', account_id, batch),
    concat_ws(';', account_id, age, sex, coalesce(cp::text, '?'), coalesce(trestbps::text, '?'), coalesce(chol::text, '?'),
        coalesce(fbs::text, '?'), coalesce(restecg::text, '?'), coalesce(thalach::text, '?'), coalesce(exang::text, '?'),
        coalesce(oldpeak::text, '?'), coalesce(slope::text, '?'), coalesce(ca::text, '?'), coalesce(thal::text, '?'),
        coalesce(target::text, '?'))
FROM foreign_record;

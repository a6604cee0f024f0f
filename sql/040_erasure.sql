-- A person's right to be forgotten: all rows about one account, in every table that keeps any. For the owner alone.

SET search_path = heart_analysis;

CREATE OR REPLACE FUNCTION erase(person varchar) RETURNS TABLE (place varchar, rows_erased bigint)
LANGUAGE plpgsql SET search_path = heart_analysis, pg_temp AS $$
DECLARE
    -- The id as a word of its own, whatever characters are in it: malformed lines are kept as they came.
    word CONSTANT varchar := '(^|[^[:alnum:]_-])' || regexp_replace(person, '([^[:alnum:]])', '\\\1', 'g') || '($|[^[:alnum:]_-])';
BEGIN
    FOREACH place IN ARRAY ARRAY['heart_prediction', 'heart_fact', 'heart_disease_dim', 'account_dim'] LOOP
        EXECUTE format('DELETE FROM %I WHERE account_id = $1', place) USING person;
        GET DIAGNOSTICS rows_erased = ROW_COUNT;
        RETURN NEXT;
    END LOOP;
    place := 'quarantine';
    DELETE FROM quarantine WHERE trim(account_id) = person OR raw ~ word;
    GET DIAGNOSTICS rows_erased = ROW_COUNT;
    RETURN NEXT;
END
$$;
REVOKE EXECUTE ON FUNCTION erase FROM PUBLIC;
COMMENT ON FUNCTION erase IS 'Deletes every row about one person; returns how many in which table.';

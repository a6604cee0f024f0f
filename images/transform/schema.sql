-- What the values of a heart record mean: how a number and a category are read, and the codes of the two dialects.
-- The columns themselves, with units and ranges, are in transform.sql.
--
-- The canonical codes are those of UCI's documentation (heart-disease.names, 1988); data/README.md shows them as tables.
-- Kaggle's codes were found by matching its rows to UCI's; its target is inverted (its 1 means no disease).
-- Ranges are wide on purpose: they hold what a living adult can have and keep out typing errors and wrong units.
--
-- Every macro below turns a text into STRUCT(value, error, note): the canonical value, or what is wrong with the text,
-- or what a reader of the result should know.

CREATE MACRO is_missing(text) AS text IN ('', '?');

CREATE MACRO number(text) AS
    CASE WHEN isfinite(TRY_CAST(text AS DOUBLE)) AND NOT contains(text, '_') THEN TRY_CAST(text AS DOUBLE) END;

-- A message shows no more than 40 characters of a wrong value.
CREATE MACRO says(name, text, reason) AS format('{} ''{}'' {}', name, text[:40], reason);

CREATE MACRO not_a_number(name, text) AS
    CASE WHEN regexp_full_match(text, '[+-]?\d+,\d+') THEN says(name, text, 'has a decimal comma (write a point)')
         ELSE says(name, text, 'is not a number (write ? where it is not known)') END;

-- A measured number. In these data 0 was written where blood pressure or cholesterol was not measured.
CREATE MACRO measured(name, text, unit, low, high, whole := true, zero_is_missing := false) AS
    CASE
        WHEN text IS NULL OR is_missing(text) THEN {'value': NULL, 'error': NULL, 'note': NULL}
        WHEN number(text) IS NULL THEN {'value': NULL, 'error': not_a_number(name, text), 'note': NULL}
        WHEN zero_is_missing AND number(text) = 0 THEN {'value': NULL, 'error': NULL, 'note': name || ' 0 taken for not measured'}
        WHEN number(text) NOT BETWEEN low AND high
            THEN {'value': NULL, 'error': says(name, text, format('is outside {} to {} {}', low, high, unit)), 'note': NULL}
        WHEN whole AND number(text) <> floor(number(text))
            THEN {'value': NULL, 'error': says(name, text, 'is not a whole number'), 'note': NULL}
        WHEN number(text) < 0 THEN {'value': number(text), 'error': NULL, 'note': name || ' below 0 kept'}
        ELSE {'value': number(text), 'error': NULL, 'note': NULL}
    END;

-- A category. codes: what the delivery writes -> the canonical code, or NULL where that stands for missing.
CREATE MACRO coded(name, text, codes) AS
    CASE
        WHEN text IS NULL OR is_missing(text) THEN {'value': NULL, 'error': NULL, 'note': NULL}
        WHEN number(text) IS NULL THEN {'value': NULL, 'error': not_a_number(name, text), 'note': NULL}
        WHEN in_codes(text, codes) THEN {'value': codes[number(text)], 'error': NULL, 'note': NULL}
        ELSE {'value': NULL, 'error': says(name, text, 'is none of the codes ' || array_to_string(map_keys(codes), ', ')), 'note': NULL}
    END;

CREATE MACRO in_codes(text, codes) AS is_missing(text) OR coalesce(map_contains(codes, number(text)), false);

-- 0 no, 1 yes: sex (1 male), fbs (fasting blood sugar above 120 mg/dl), exang (angina induced by exercise)
CREATE MACRO yes_no() AS MAP {0: 0, 1: 1};
-- chest pain: 1 typical angina, 2 atypical angina, 3 non-anginal pain, 4 asymptomatic
CREATE MACRO cp_codes(dialect) AS
    CASE dialect WHEN 'uci' THEN MAP {1: 1, 2: 2, 3: 3, 4: 4} WHEN 'kaggle' THEN MAP {0: 4, 1: 2, 2: 3, 3: 1} END;
-- resting ECG: 0 normal, 1 ST-T abnormality, 2 left ventricular hypertrophy
CREATE MACRO restecg_codes(dialect) AS
    CASE dialect WHEN 'uci' THEN MAP {0: 0, 1: 1, 2: 2} WHEN 'kaggle' THEN MAP {0: 2, 1: 0, 2: 1} END;
-- ST segment at peak exercise: 1 upsloping, 2 flat, 3 downsloping
CREATE MACRO slope_codes(dialect) AS
    CASE dialect WHEN 'uci' THEN MAP {1: 1, 2: 2, 3: 3} WHEN 'kaggle' THEN MAP {0: 3, 1: 2, 2: 1} END;
-- number of major vessels coloured by fluoroscopy
CREATE MACRO ca_codes(dialect) AS
    CASE dialect WHEN 'uci' THEN MAP {0: 0, 1: 1, 2: 2, 3: 3} WHEN 'kaggle' THEN MAP {0: 0, 1: 1, 2: 2, 3: 3, 4: NULL} END;
-- thallium scan: 3 normal, 6 fixed defect, 7 reversible defect
CREATE MACRO thal_codes(dialect) AS
    CASE dialect WHEN 'uci' THEN MAP {3: 3, 6: 6, 7: 7} WHEN 'kaggle' THEN MAP {0: NULL, 1: 6, 2: 3, 3: 7} END;
-- 0 no disease, 1 disease; UCI's `num` counts narrowed vessels, and any above 0 is disease
CREATE MACRO target_codes(dialect) AS
    CASE dialect WHEN 'uci' THEN MAP {0: 0, 1: 1, 2: 1, 3: 1, 4: 1} WHEN 'kaggle' THEN MAP {0: 1, 1: 0} END;

-- Whether a text is one of a column's codes, in the columns whose codes tell one dialect from the other.
CREATE MACRO is_code(name, text, dialect) AS
    CASE name
        WHEN 'cp' THEN in_codes(text, cp_codes(dialect))
        WHEN 'slope' THEN in_codes(text, slope_codes(dialect))
        WHEN 'ca' THEN in_codes(text, ca_codes(dialect))
        WHEN 'thal' THEN in_codes(text, thal_codes(dialect))
    END;

-- In three looks: one pattern of up to 64 such characters is a hundred times slower.
CREATE MACRO account_id_error(text) AS
    CASE WHEN text <> '' AND (length(text) > 64 OR text[1] IN ('.', '_', '-', '/') OR regexp_matches(text, '[^\p{L}\p{N}._/-]'))
         THEN says('account_id', text, 'is no account_id (up to 64 letters, digits, . _ - and /)') END;

-- The warehouse's roles, which sql/ makes and grants to, may log in here.
\set load `cat /run/secrets/heart_load`
\set train `cat /run/secrets/heart_train`
\set evaluate `cat /run/secrets/heart_evaluate`
\set predict `cat /run/secrets/heart_predict`
\set analyst `cat /run/secrets/heart_analyst`

ALTER ROLE heart_load LOGIN PASSWORD :'load';
ALTER ROLE heart_train LOGIN PASSWORD :'train';
ALTER ROLE heart_evaluate LOGIN PASSWORD :'evaluate';
ALTER ROLE heart_predict LOGIN PASSWORD :'predict';
ALTER ROLE heart_analyst LOGIN PASSWORD :'analyst';
GRANT CONNECT ON DATABASE heart TO heart_load, heart_train, heart_evaluate, heart_predict, heart_analyst;
-- Load stages its records in temporary tables.
GRANT TEMPORARY ON DATABASE heart TO heart_load;

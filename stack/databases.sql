-- Airflow and MLflow own a database each, where nobody else may connect; the warehouse belongs to the superuser alone.
\set airflow `cat /run/secrets/airflow`
\set mlflow `cat /run/secrets/mlflow`

SELECT format('CREATE ROLE %I', name) FROM unnest(ARRAY['airflow', 'mlflow']) AS name
WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE airflow LOGIN PASSWORD :'airflow';
ALTER ROLE mlflow LOGIN PASSWORD :'mlflow';

SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (VALUES ('airflow', 'airflow'), ('mlflow', 'mlflow'), ('heart', 'postgres')) AS wanted (name, owner)
WHERE name NOT IN (SELECT datname FROM pg_database) \gexec
REVOKE ALL ON DATABASE airflow, mlflow, heart, postgres FROM PUBLIC;

#!/bin/sh
# Databases and roles of Airflow, MLflow and the warehouse, then the warehouse's own tables and grants. Every time anew:
# what is there stays, passwords become those of .credentials.
set -eu
until pg_isready --quiet; do sleep 0.5; done
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --dbname postgres --file /stack/databases.sql
for file in /sql/*.sql; do
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --dbname heart --single-transaction --file "$file"
done
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --dbname heart --file /stack/logins.sql

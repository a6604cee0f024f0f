#!/bin/sh
# Migrates Airflow's database, then makes the first user and the pool that stages share.
set -eu
airflow db migrate
# Also after the password was changed in .credentials.
airflow users create --username heart --firstname heart --lastname pipeline --role Admin --email heart@example.com \
    --password "$(cat /run/secrets/admin_password)"
airflow users reset-password --username heart --password "$(cat /run/secrets/admin_password)"
airflow pools set stages 2 "Stages that may work at the same time"

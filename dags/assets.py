"""What the DAGs produce and wait for."""

from airflow.sdk import Asset

WAREHOUSE = Asset(name="warehouse", uri="heart://warehouse/heart_analysis/heart_fact")

"""Nobody is in where they don't belong: roles in PostgreSQL, logins of Airflow and MLflow, networks, credentials."""

import base64
import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest
from attack import Attacked

from runners import docker
from stacks import Stack
from support import ROOT, STAGES, ask_mlflow

pytestmark = pytest.mark.docker

# Runs each statement in a transaction that is taken back; prints what PostgreSQL said of it: its SQLSTATE, or "".
TRY = """
import json, psycopg2, sys
told = json.load(sys.stdin)
answers = []
for user, password, database, statement in told:
    try:
        connection = psycopg2.connect(host="postgres", user=user, password=password, dbname=database, connect_timeout=10)
    except psycopg2.OperationalError as error:
        answers.append("no login: " + str(error).strip().splitlines()[-1])
        continue
    try:
        connection.cursor().execute(statement)
        answers.append("")
    except psycopg2.Error as error:
        answers.append(error.pgcode or str(error))
    connection.close()
print(json.dumps(answers))
"""
FORBIDDEN_BY_PRIVILEGE = "42501"
SCHEMA = "heart_analysis"
TABLES = ("account_dim", "heart_disease_dim", "heart_fact", "quarantine", "load_batch", "heart_prediction", "promotion", "drift",
          "model_evaluation")  # fmt: skip
BATCHED = ("load_batch", "drift", "model_evaluation")
WRITES = {
    "heart_load": {"account_dim", "heart_disease_dim", "heart_fact", "quarantine", "load_batch"},
    "heart_train": set(),
    "heart_evaluate": {"model_evaluation", "promotion", "drift"},
    "heart_predict": {"heart_prediction"},
    "heart_analyst": set(),
}
READS = {
    "heart_load": {"account_dim", "heart_disease_dim", "heart_fact", "quarantine", "load_batch"},
    "heart_train": {"heart_sample", "load_batch"},
    "heart_evaluate": {"heart_sample", "load_batch", "model_evaluation", "promotion", "drift"},
    "heart_predict": {"heart_feature", "heart_prediction"},
    "heart_analyst": {*TABLES, "heart_feature", "heart_sample"},
}


# What no role of a stage or an analyst may do.
NEVER = (
    f"CREATE TABLE {SCHEMA}.x (y int)", "CREATE TABLE public.x (y int)", f"DROP SCHEMA {SCHEMA} CASCADE",
    "CREATE ROLE x SUPERUSER", "SET ROLE postgres", "SELECT * FROM pg_authid", "SET SESSION AUTHORIZATION postgres",
    "COPY (SELECT 1) TO PROGRAM 'sh'", "SELECT pg_read_file('/etc/passwd')",
)  # fmt: skip


def database_answers(stack: Stack, asked: list[tuple[str, str, str]]) -> list[str]:
    """Return what PostgreSQL says to (role, database, statement), each with the role's own password."""
    told = [(role, stack.credentials[f"{role.upper()}_DB_PASSWORD"], database, said) for role, database, said in asked]
    return inside(stack, "backend", TRY, told)


def inside(stack: Stack, network: str, program: str, told: Any = None) -> Any:
    """Run a program where a stage would run, on one of the stack's networks; return what it prints as JSON."""
    name = network if network == "none" else f"{stack.project}_{network}"
    command = ["docker", "run", "--rm", "--interactive", f"--network={name}", "--entrypoint=python", "heart/load:dev"]
    done = subprocess.run([*command, "-c", program], input=json.dumps(told), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_role_does_what_it_needs_and_nothing_else(stack, first):
    asked, expected = [], []
    for role, readable in READS.items():
        for table in (*TABLES, "heart_feature", "heart_sample"):
            asked.append((role, "heart", f"SELECT * FROM {SCHEMA}.{table} LIMIT 1"))
            expected.append("" if table in readable else FORBIDDEN_BY_PRIVILEGE)
        for table in TABLES:
            column = {"quarantine": "reason", "promotion": "reason"}.get(table, "batch" if table in BATCHED else "account_id")
            insert = f"INSERT INTO {SCHEMA}.{table} ({column}) SELECT 'x' WHERE false"
            asked.append((role, "heart", insert))
            expected.append("" if table in WRITES[role] else FORBIDDEN_BY_PRIVILEGE)
            for what in ("DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {} CASCADE", "ALTER TABLE {} ADD COLUMN x int"):
                asked.append((role, "heart", what.format(f"{SCHEMA}.{table}")))
                expected.append(FORBIDDEN_BY_PRIVILEGE)
        for statement in NEVER:
            asked.append((role, "heart", statement))
            expected.append(FORBIDDEN_BY_PRIVILEGE)
    # What was decided or predicted is never changed afterwards.
    for role, table in (("heart_evaluate", "promotion"), ("heart_predict", "heart_prediction"), ("heart_load", "quarantine")):
        asked.append((role, "heart", f"UPDATE {SCHEMA}.{table} SET {'run' if table == 'heart_prediction' else 'reason'} = ''"))
        expected.append(FORBIDDEN_BY_PRIVILEGE)
    answers = database_answers(stack, asked)
    outcomes = zip(asked, answers, expected, strict=True)
    assert not [(role, said, answer) for (role, _, said), answer, wanted in outcomes if answer != wanted]


def test_airflow_and_mlflow_do_not_see_the_warehouse_nor_the_warehouse_them(stack, first):
    asked = [
        (role, database, "SELECT 1")
        for role in ("airflow", "mlflow", *WRITES)
        for database in ("airflow", "mlflow", "heart", "postgres")
    ]
    own = {("airflow", "airflow"), ("mlflow", "mlflow"), *((role, "heart") for role in WRITES)}
    for (role, database, _), answer in zip(asked, database_answers(stack, asked), strict=True):
        if (role, database) in own:
            assert answer == "", (role, database)
        else:
            assert "CONNECT privilege" in answer, (role, database, answer)


def test_passwords_are_scram_and_asked_for(stack):
    assert stack.query("SELECT DISTINCT left(rolpassword, 13) FROM pg_authid WHERE rolcanlogin") == [["SCRAM-SHA-256"]]
    asked = [
        ("heart_load", "", "heart", "SELECT 1"),
        ("heart_load", "wrong", "heart", "SELECT 1"),
        ("postgres", "postgres", "postgres", "SELECT 1"),
    ]
    answers = inside(stack, "backend", TRY, asked)
    assert all("no login" in answer and ("password" in answer) for answer in answers), answers


def status_of(
    address: str, headers: dict[str, str] | None = None, body: dict[str, Any] | None = None, method: str | None = None
) -> int:
    """Return the status with which a request is answered, redirections not followed."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"} | (headers or {}), method=method)  # noqa: S310
    try:
        return urllib.request.build_opener(Stay).open(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_airflow_and_mlflow_answer_nobody_whom_they_do_not_know(stack, first):
    airflow, mlflow = stack.address("AIRFLOW"), stack.address("MLFLOW")
    for path in ("dags", "dags/etl_dag/dagRuns", "connections", "variables", "config", "pools", "eventLogs", "assets/events"):
        assert status_of(f"{airflow}/api/v2/{path}") == 401, path
        assert status_of(f"{airflow}/api/v2/{path}", {"Authorization": "Bearer x"}) in (401, 403), path
    assert status_of(f"{airflow}/api/v2/dags/etl_dag/dagRuns", body={"logical_date": None}) == 401
    for password in ("heart", "airflow", "admin", ""):
        assert status_of(f"{airflow}/auth/token", body={"username": "heart", "password": password}) in (400, 401)
    with pytest.raises(urllib.error.HTTPError) as refused:
        stack.airflow("config")
    assert refused.value.code == 403, "settings are shown to nobody"
    for path in ("", "api/2.0/mlflow/experiments/get?experiment_id=0", "api/2.0/mlflow/registered-models/search",
                 "ajax-api/2.0/mlflow/experiments/search?max_results=5", "api/2.0/mlflow-artifacts/artifacts?path=",
                 "get-artifact?path=x&run_uuid=y", "graphql", "api/2.0/mlflow/users/list"):  # fmt: skip
        assert status_of(f"{mlflow}/{path}") == 401, path
        login = base64.b64encode(b"admin:password1234").decode()
        assert status_of(f"{mlflow}/{path}", {"Authorization": f"Basic {login}"}) == 401, path
    assert status_of(f"{mlflow}/api/2.0/mlflow/runs/create", body={"experiment_id": "0"}) == 401


@pytest.mark.parametrize(
    ("client", "allowed"),
    [("train", ("tag", "alias", "no alias")), ("evaluate", ("tag", "alias", "no alias")), ("predict", ()), ("model", ())],
)
def test_a_stage_may_do_in_mlflow_what_it_needs(stack, first, client, allowed):
    login = f"{client}:{stack.credentials[f'MLFLOW_{client.upper()}_PASSWORD']}"
    mine = stack.address("MLFLOW").replace("//", f"//{login}@")
    assert ask_mlflow(mine, "registered-models/get", name="heart-disease")["registered_model"]["name"] == "heart-disease"
    alias = {"name": "heart-disease", "alias": "tried"}
    attempts = {
        "tag": ("POST", "registered-models/set-tag", {"name": "heart-disease", "key": "tried", "value": "yes"}),
        "alias": ("POST", "registered-models/alias", alias | {"version": "1"}),
        "no alias": ("DELETE", "registered-models/alias", alias),
        "more users": ("POST", "users/create", {"username": "more", "password": "more than twelve"}),
        "more power": ("PATCH", "users/update-admin", {"username": client, "is_admin": True}),
        "another's password": ("PATCH", "users/update-password", {"username": "heart", "password": "more than twelve"}),
    }
    header = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    for name, (method, path, body) in attempts.items():
        status = status_of(f"{stack.address('MLFLOW')}/api/2.0/mlflow/{path}", header, body, method)
        assert status == (200 if name in allowed else 403), name


REACH = """
import json, socket, sys
def reach(host, port):
    try:
        socket.create_connection((host, port), 2).close()
        return True
    except OSError:
        return False
print(json.dumps({f"{host}:{port}": reach(host, port) for host, port in json.load(sys.stdin)}))
"""


def test_a_stage_reaches_what_it_declares_and_nothing_else(stack, first):
    services = {"postgres": 5432, "mlflow": 5000, "valkey": 6379, "airflow-apiserver": 8080, "gateway": 2375}
    asked = [*services.items(), ("1.1.1.1", 443), ("9.9.9.9", 53)]
    nothing = dict.fromkeys((f"{host}:{port}" for host, port in asked), False)
    for network, reached in {"none": {}, "warehouse": {"postgres:5432": True}, "mlflow": {"mlflow:5000": True}}.items():
        assert inside(stack, network, REACH, asked) == nothing | reached, network
    assert {name: stage.networks for name, stage in STAGES.items()} == {
        "extract": (), "transform": (), "load": ("warehouse",),
        **dict.fromkeys(("train", "evaluate", "predict"), ("warehouse", "mlflow")),
    }  # fmt: skip


# Prints which of some texts stand anywhere in the files of /look.
SEARCH = """
import json, pathlib, sys
texts = {name: text.encode() for name, text in json.load(sys.stdin).items()}
found = {}
for path in pathlib.Path("/look").rglob("*"):
    if path.is_file():
        content = path.read_bytes()
        for name, text in texts.items():
            if text in content:
                found.setdefault(name, str(path))
print(json.dumps(found))
"""


def search(stack: Stack, volumes: list[str], texts: dict[str, str]) -> dict[str, str]:
    """Return which of some texts stand in the files of volumes, and in which file."""
    mounts = [f"--volume={stack.project}_{volume}:/look/{volume}:ro" for volume in volumes]
    command = ["docker", "run", "--rm", "--interactive", "--user=0", "--network=none", *mounts, "--entrypoint=python"]
    done = subprocess.run([*command, "heart/base:dev", "-c", SEARCH], input=json.dumps(texts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seen(stack: Stack, attacked: Attacked) -> str:
    """Give what the engine shows of every container, stages at work among them, and of every image."""
    assert len(attacked.stages) >= 3, "train, evaluate, predict"
    services = docker("ps", "--all", "--quiet", f"--filter=label=com.docker.compose.project={stack.project}").split()
    images = [
        name
        for name in docker("images", "--format={{.Repository}}:{{.Tag}}").split()
        if name.startswith(("heart/", "heart-base/"))
    ]
    histories = [docker("history", "--no-trunc", image) for image in images]
    return "".join([*attacked.stages.values(), docker("inspect", *services), docker("inspect", *images), *histories])


def test_no_credential_shows_anywhere(stack, seen):
    everything = seen + stack.compose("config") + stack.compose("logs", "--no-color")
    # Whatever Airflow and MLflow keep, their pages can show: rendered fields, XCom, tags, parameters.
    for database in ("airflow", "mlflow", "heart"):
        everything += stack.compose("exec", "-T", "postgres", "pg_dump", "-U", "postgres", database)
    shown = [name for name, value in stack.credentials.items() if value in everything]
    assert not shown
    assert search(stack, ["artifacts", "mlflow", "airflow_logs", "pgadmin", "valkey"], stack.credentials) == {}


def test_no_account_id_is_in_a_log(stack, seen):
    ids = [line.split(";")[0] for path in (ROOT / "data").glob("*/account_raw.csv") for line in path.read_text().splitlines()[1:]]
    assert len(ids) == 920
    # A batch that brings an id of another's is refused by the key, which the server logs.
    again = "INSERT INTO heart_analysis.heart_fact (account_id, batch, load_id) SELECT min(account_id), 'another', 1"
    with pytest.raises(AssertionError, match="already exists"):
        stack.query(f"{again} FROM heart_analysis.heart_fact")
    logs = stack.compose("logs", "--no-color")
    assert "duplicate key value" in logs
    assert not [name for name in ids if name in logs]
    assert search(stack, ["airflow_logs"], {name: name for name in ids}) == {}


def test_new_credentials_with_one_command_and_nothing_is_lost(stack, first):
    before, old = stack.tables(), stack.credentials
    done = stack.make("rotate")
    assert done.returncode == 0, done.stdout + done.stderr
    new = stack.credentials
    assert set(new) == set(old) and not [name for name in new if new[name] == old[name]]
    assert stack.tables() == before
    login = {"username": "heart", "password": old["AIRFLOW_PASSWORD"]}
    assert status_of(f"{stack.address('AIRFLOW')}/auth/token", body=login) == 401
    assert stack.airflow("dags")["total_entries"] == 3
    with pytest.raises(urllib.error.HTTPError):
        ask_mlflow(stack.address("MLFLOW").replace("//", f"//heart:{old['MLFLOW_PASSWORD']}@"), "registered-models/search")
    assert stack.versions()
    roles = (("postgres", "postgres"), ("heart_load", "heart"), ("airflow", "airflow"))
    asked = [(role, old[f"{role.upper()}_DB_PASSWORD"], database, "SELECT 1") for role, database in roles]
    answers = inside(stack, "backend", TRY, asked)
    assert all("password authentication failed" in answer for answer in answers)
    pipeline = stack.make("pipeline", "BATCH=cleveland")
    assert pipeline.returncode == 0, pipeline.stdout + pipeline.stderr
    assert [logs_in_to_pgadmin(stack, found["PGADMIN_PASSWORD"]) for found in (old, new)] == [False, True]


def logs_in_to_pgadmin(stack: Stack, password: str) -> bool:
    """Return whether pgAdmin lets its user in with a password."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    page = browser.open(f"{stack.address('PGADMIN')}/login", timeout=60).read().decode()
    token = re.search(r"csrf_?token\W+([\w.-]{40,})", page, re.IGNORECASE)
    assert token, page[:3000]
    form = {"email": "heart@example.com", "password": password, "csrf_token": token.group(1)}
    answer = browser.open(f"{stack.address('PGADMIN')}/authenticate/login", urllib.parse.urlencode(form).encode(), timeout=60)
    return "/browser" in answer.url

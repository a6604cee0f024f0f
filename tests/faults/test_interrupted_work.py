"""What is cut off in the middle: a load at any moment, the database for want of room, a stage that leaves its folder behind."""

import fcntl
import os
import random
import subprocess
import time

import pytest

from runners import ContainerRunner, docker, network, postgres_container, wait_until
from support import (
    ACCOUNT_HEADER,
    DONE,
    HEART_HEADER,
    NOTHING_TO_DO,
    UNAVAILABLE,
    Delivery,
    Warehouse,
    make_warehouse,
    read_outcome,
)

SEED = 20_261
KILLS = 24
PEOPLE = 10_000
CONTENT = """
SELECT md5(string_agg((to_jsonb(t) - 'load_id' - 'changed_at')::text, '' ORDER BY account_id)) FROM heart_analysis.{} t
"""
TABLES = ("account_dim", "heart_disease_dim", "heart_fact")


def many(delivery: Delivery, people: int) -> None:
    """Deliver batch a: people who differ, and one in fifty who is set aside."""
    draw = random.Random(SEED)  # noqa: S311 - not for a secret
    accounts, hearts = [ACCOUNT_HEADER], [HEART_HEADER]
    for number in range(people):
        age = draw.randint(30, 75) if number % 50 else 300
        accounts.append(f"A{number};{age};{draw.randint(0, 1)}")
        hearts.append(f"A{number};{draw.randint(1, 4)};130;{draw.randint(150, 350)};0;0;150;0;1.2;2;0;3;{draw.randint(0, 1)}")
    delivery.write("a", "\n".join(accounts) + "\n", "\n".join(hearts) + "\n")


def contents(warehouse: Warehouse) -> list[object]:
    """Return what the three tables hold, as digests, and how many records were set aside and loads recorded."""
    digests = [warehouse.query(CONTENT.format(table))[0][0] for table in TABLES]
    counts = warehouse.query(
        "SELECT (SELECT count(*) FROM heart_analysis.quarantine), (SELECT count(*) FROM heart_analysis.load_batch)"
    )
    return [*digests, *counts[0]]


@pytest.mark.docker
def test_a_load_killed_at_any_moment_is_there_whole_or_not_at_all(engine, tmp_path):
    runner, postgres = engine
    warehouse = Warehouse(make_warehouse(postgres))
    loading = Delivery(tmp_path, variables=dict(warehouse.environment), runner=runner)
    many(loading, PEOPLE)
    loading.stage("extract", "a")
    loading.stage("transform", "a")

    def forget() -> None:
        """Leave one person, of another batch, with the last id of this one: it is set aside once all others are written."""
        warehouse.query(f"TRUNCATE {', '.join(f'heart_analysis.{t}' for t in (*TABLES, 'quarantine', 'load_batch'))} CASCADE")
        warehouse.query("INSERT INTO heart_analysis.heart_fact (account_id, batch, load_id) VALUES ('A9999', 'another', 1)")

    forget()
    nothing = contents(warehouse)
    started = time.monotonic()
    loading.stage("load", "a")
    seconds, whole = time.monotonic() - started, contents(warehouse)
    assert nothing[:2] == [None, None] and nothing[3:] == [0, 0] and whole[3:] == [PEOPLE // 50 + 1, 1]
    forget()
    moments = random.Random(SEED)  # noqa: S311 - not for a secret
    found = []
    for _ in range(KILLS):
        running = loading.start("load", "a")
        try:
            running.process.wait(moments.uniform(0.2, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            subprocess.run(["docker", "kill", running.container], capture_output=True)  # it may have ended just now
        running.finish()
        there = contents(warehouse)
        assert there in (nothing, whole)
        found.append(there == whole)
        if there == whole:
            forget()
    assert {True, False} == set(found), "kills before the commit and after it"
    loading.stage("load", "a", expect=(DONE, NOTHING_TO_DO))
    assert contents(warehouse) == whole


@pytest.mark.docker
def test_both_ends_notice_that_the_network_is_gone_and_the_next_try_need_not_wait_for_long(engine, tmp_path):
    runner, postgres = engine
    warehouse = Warehouse(make_warehouse(postgres))
    loading = Delivery(tmp_path, variables=dict(warehouse.environment), runner=runner)
    many(loading, 10)
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    with warehouse.held():
        cut = loading.start("load", "a")
        wait_until(warehouse.has_waiting)
        docker("network", "disconnect", "--force", runner.network, cut.container)
        outcome = read_outcome(*cut.finish())
        wait_until(lambda: not warehouse.has_waiting())
    assert outcome.code == UNAVAILABLE and outcome.error.startswith("PostgreSQL: ")
    loading.stage("load", "a")


@pytest.mark.docker
def test_a_database_without_room_ends_with_75_and_a_retry_succeeds_once_there_is_room(tmp_path):
    volume = docker("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=size=120m")
    # A tmpfs lives as long as a container has it.
    holder = docker("run", "--detach", "--rm", "--init", "--user=0", f"--volume={volume}:/data", "--entrypoint=sleep",
                    "heart/base:dev", "infinity")  # fmt: skip
    place = [f"--volume={volume}:/var/lib/postgresql/data"]
    try:
        with network() as on, postgres_container(on, tmp_path, place) as (postgres, addresses):
            warehouse = Warehouse(make_warehouse(postgres))
            loading = Delivery(tmp_path, variables=dict(warehouse.environment), runner=ContainerRunner(on, addresses))
            many(loading, PEOPLE)
            loading.stage("extract", "a")
            loading.stage("transform", "a")
            docker("exec", holder, "sh", "-c", "cat /dev/zero > /data/filler 2>/dev/null || true")
            outcome = loading.stage("load", "a", expect=UNAVAILABLE)
            assert "No space left on device" in outcome.error and outcome.error.startswith("PostgreSQL: ")
            docker("exec", holder, "rm", "/data/filler")
            loading.stage("load", "a")
            assert contents(warehouse)[3:] == [PEOPLE // 50, 1]
    finally:
        docker("rm", "--force", holder)
        docker("volume", "rm", volume)


def test_folders_that_killed_tries_left_are_removed_by_the_next_run_and_others_are_not(tmp_path):
    delivery = Delivery(tmp_path)
    many(delivery, 100)
    place = delivery.artifacts / "run-0" / "extract"
    dead, alive, fresh = (place / f".extract-{name}" for name in ("dead", "alive", "fresh"))
    for folder in (dead, alive, fresh):
        (folder / "outputs").mkdir(parents=True)
    for folder in (dead, alive):
        os.utime(folder, (time.time() - 3600,) * 2)
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as the stage that works there does
    delivery.stage("extract", "a")
    os.close(descriptor)
    assert not dead.exists() and alive.exists() and fresh.exists()

"""Deliveries that would fill a careless reader's memory, in containers with the limits of the contract; unusual honest ones."""

import pytest

from support import ACCOUNT_HEADER, HEART_HEADER, REFUSED

VALUES = ";1;145;233;1;2;150;0;2.3;3;0;6;0"


@pytest.mark.parametrize("runner", [pytest.param("container", marks=pytest.mark.docker)], indirect=True)
def test_a_line_of_a_gigabyte_is_set_aside_within_the_memory_of_the_stage(loading, warehouse):
    loading.write("a", f"{ACCOUNT_HEADER}\nA1;63;1\nA2;63;1\n", f"{HEART_HEADER}\nA1{VALUES}\nA2;")
    with (loading.data / "a" / "heart_raw.csv").open("r+b") as file:
        file.seek(2**30)  # a hole: what was never written reads as NUL
        file.write(f"\nA2{VALUES}\n".encode())
    loading.etl("a")
    assert warehouse.query("SELECT line, reason, length(raw) FROM heart_analysis.quarantine") == [
        (3, f"line has {2**30 - len(HEART_HEADER) - len(VALUES) - 3} bytes; at most 65536 are read", 1000)
    ]
    assert warehouse.query("SELECT account_id FROM heart_analysis.heart_fact ORDER BY 1") == [("A1",), ("A2",)]


@pytest.mark.parametrize("runner", [pytest.param("container", marks=pytest.mark.docker)], indirect=True)
def test_a_million_columns_are_refused_in_a_line(delivery):
    many = ";".join(f"c{number}" for number in range(1_000_000))
    delivery.write("a", f"{ACCOUNT_HEADER}\nA1;63;1\n", f"{HEART_HEADER};{many}\nA1{VALUES}\n")
    outcome = delivery.stage("extract", "a", expect=REFUSED)
    assert "heart_raw.csv: line 1: " in outcome.error and len(outcome.error) < 1_000
    delivery.write("a", f"{ACCOUNT_HEADER}\nA1;63;1\n", f"{HEART_HEADER}\nA1{VALUES}{';' * 1_000_000}\n")
    assert delivery.stage("extract", "a").rows == {"in": 1, "out": 0, "rejected": 1, "duplicate": 0}


def test_a_byte_order_mark_blanks_and_case_change_nobody(loading, warehouse):
    hearts = f"\ufeff{HEART_HEADER}\nA1 {VALUES}\n a1{VALUES}\nA2{VALUES}\n"
    loading.write("a", f"\ufeff{ACCOUNT_HEADER}\n A1;63;1\na1 ;40;0\nA2;50;1\n", hearts)
    loading.etl("a")
    found = warehouse.query('SELECT account_id, age FROM heart_analysis.heart_fact ORDER BY account_id COLLATE "C"')
    assert found == [("A1", 63), ("A2", 50), ("a1", 40)]

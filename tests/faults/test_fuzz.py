"""Files spoilt byte by byte: the bounded part of `make fuzz`."""

from fuzz import fuzz


def test_deliveries_spoilt_byte_by_byte_are_stood(postgres):
    ends, failures = fuzz(postgres, range(200), seed=20_261)
    assert not failures, [(failure.number, failure.what[:500]) for failure in failures[:3]]
    assert sum(ends.values()) == 200
    # The deliveries are neither all hopeless nor all harmless.
    assert ends["loaded, some set aside"] > 50 and ends["refused by extract"] > 20 and ends["loaded"] > 1

import math

import pytest

from lightning_bsscale.theory.numbers import describe_count, describe_number, describe_time

COUNTS = {
    0: "0",
    1: "1",
    16.54: "16.5",
    33_675: "33,675",
    999_999: "999,999",
    999_999.6: "1 M",
    1_048_576: "1.05 M",
    12_345_678: "12.3 M",
    123_456_789: "123 M",
    1.5e9: "1.5 B",
    2.25e12: "2.25 T",
    -3: "-3",
    math.inf: "inf",
    math.nan: "nan",
}


@pytest.mark.parametrize(("value", "text"), COUNTS.items(), ids=str)
def test_counts_are_written_as_people_write_them(value, text):
    assert describe_count(value) == text


def test_no_count_has_a_power_of_ten():
    for power in range(-3, 15):
        for digit in (1, 1.048576, 9.996):
            assert "e" not in describe_count(digit * 10**power, "steps").removesuffix("steps").removesuffix("step")


def test_a_count_has_its_unit_in_its_number():
    assert describe_count(12.3e6, "tokens") == "12.3 M tokens"
    assert describe_count(1, "examples") == "1 example"
    assert describe_count(0, "examples") == "0 examples"


def test_times():
    assert describe_time(12_240) == "3.4 h"
    assert describe_time(720, 570, 912) == "12 min [9.5, 15.2]"
    assert describe_number(0.0125) == "0.0125"

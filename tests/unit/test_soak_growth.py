"""The soak's exit code can fail for everything it watches, an object store that starts empty too."""

import pytest

from benchmarks.soak import growth

EMPTY = [0.0] * 10


def test_a_store_that_was_empty_and_fills_has_grown() -> None:
    assert growth([*EMPTY, *(900.0 for _ in range(40))]) == (900.0, True)


@pytest.mark.parametrize(("late", "too_much"), [(0.0, False), (0.9, False), (1.1, True)])
def test_an_empty_store_may_hold_a_mebibyte(late: float, too_much: bool) -> None:
    assert growth([*EMPTY, *(late for _ in range(40))])[1] is too_much


@pytest.mark.parametrize(("late", "too_much"), [(600.0, False), (611.9, False), (612.1, True), (500.0, False)])
def test_a_process_may_grow_by_two_percent(late: float, too_much: bool) -> None:
    values = [*(300.0 for _ in range(4)), *(600.0 for _ in range(6)), *(late for _ in range(40))]
    assert growth(values)[1] is too_much


def test_one_high_reading_is_no_growth() -> None:
    assert growth([*EMPTY, *(0.0 for _ in range(39)), 900.0]) == (0.0, False)

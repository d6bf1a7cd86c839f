"""Ticks of contracts side by side are refused: each switch would look like a roll."""

from __future__ import annotations

import numpy as np
import pytest

from algospace.errors import InputError
from algospace.features import build_from_ticks
from algospace.features.checks import check_contracts
from algospace.features.tick_bars import build_bars
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, Ticks


def ticks(codes: list[int]) -> Ticks:
    n = len(codes)
    return Ticks(np.arange(n) * MINUTE_NS, 5000.0 + np.array(codes) * 200.0, np.ones(n),
                 contract=np.array(codes, np.int32))  # fmt: skip


@pytest.mark.parametrize("codes", [[], [3], [1, 1, 1], [2, 2, 0, 0, 1]])
def test_contracts_one_after_another_are_fine(codes: list[int]) -> None:
    check_contracts(ticks(codes))


@pytest.mark.parametrize(("codes", "row"), [([0, 1, 0], 2), ([0, 0, 1, 2, 2, 1, 1], 5)])
def test_a_contract_that_comes_back_is_named_with_its_row(codes: list[int], row: int) -> None:
    with pytest.raises(InputError, match=f"row {row}: contract number {codes[row]} comes back"):
        check_contracts(ticks(codes))
    with pytest.raises(InputError, match="side by side"):
        build_from_ticks(ticks(codes), instrument("NQ"))
    with pytest.raises(InputError, match="side by side"):
        build_bars(ticks(codes), ["5m"])

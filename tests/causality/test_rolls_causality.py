"""No roll decision knows its own day, and none goes backwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.instruments import instrument
from algospace.marketdata.contracts import expiry_ranks
from algospace.marketdata.roll_table import RollSchedule
from algospace.marketdata.rolls import (
    ContractRows,
    ExpiryRoll,
    OpenInterestRoll,
    RollRule,
    VolumeRoll,
    choose_front,
    front_rows,
)

ES = instrument("ES")
NAMES = ("ESH5", "ESM5", "ESU5", "ESZ5")
RULES: list[RollRule] = [VolumeRoll(), OpenInterestRoll(), OpenInterestRoll(publication_days=0), ExpiryRoll(),
                         ExpiryRoll(days=0)]


def random_rows(seed: int, n: int = 400) -> ContractRows:
    """Contracts that print irregularly over ten months, in time order, sizes at random."""
    rng = np.random.default_rng(seed)
    ts = np.sort(1_735_800_000 + rng.integers(0, 300 * 86_400, n)) * 10**9
    life = (ts - ts[0]) / (300 * 86_400 * 10**9) * 4
    code = np.clip(np.floor(life + rng.uniform(-0.5, 1.5, n)), 0, 3).astype(np.int32)
    interest = np.where(rng.random(n) < 0.3, np.nan, rng.integers(0, 1000, n))
    return ContractRows(ts, code, NAMES, rng.integers(0, 1000, n).astype(float), interest)


def head(rows: ContractRows, n: int) -> ContractRows:
    return ContractRows(rows.ts_open[:n], rows.contract[:n], rows.names, rows.volume[:n], rows.open_interest[:n])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{rule.digest()[:4]}")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(2, 399))
def test_rows_after_a_cut_change_no_earlier_choice(rule: RollRule, seed: int, cut: int):
    rows = random_rows(seed)
    whole = choose_front(rule, rows, ES)
    part = choose_front(rule, head(rows, cut), ES)
    np.testing.assert_array_equal(front_rows(part, head(rows, cut)), front_rows(whole, rows)[:cut])
    assert part.contracts == whole.contracts[:len(part)]
    np.testing.assert_array_equal(part.first_ts, whole.first_ts[:len(part)])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{rule.digest()[:4]}")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_contracts_follow_each_other_in_the_order_of_expiry(rule: RollRule, seed: int):
    rows = random_rows(seed)
    schedule = choose_front(rule, rows, ES)
    rank = expiry_ranks(NAMES, rows.ts_open, rows.contract)
    assert (np.diff([rank[NAMES.index(name)] for name in schedule.contracts]) > 0).all()
    assert (np.diff(schedule.first_ts) > 0).all()
    kept = front_rows(schedule, rows)
    for k in range(len(schedule)):  # each row of the front lies within its entry
        mine = rows.ts_open[kept & (rows.contract == NAMES.index(schedule.contracts[k]))]
        assert mine.size == 0 or (mine.min() >= schedule.first_ts[k] and mine.max() == schedule.last_ts[k])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), day=st.integers(5, 250), wait=st.integers(0, 3))
def test_open_interest_counts_from_its_publication_on(tmp_path_factory, seed: int, day: int, wait: int):
    rng = np.random.default_rng(seed)
    days = np.arange(20_090, 20_390)
    ts = np.repeat(days * 86_400 + 15 * 3600, len(NAMES)) * 10**9  # all contracts at 15:00 UTC of every day
    rows = ContractRows(ts, np.tile(np.arange(len(NAMES), dtype=np.int32), days.size), NAMES)
    figures = rng.integers(0, 1000, (days.size, len(NAMES)))

    def schedule(values: np.ndarray) -> RollSchedule:
        path = tmp_path_factory.mktemp("oi") / "oi.csv"
        lines = [f"{np.datetime64(int(d), 'D')},{name},{values[i, k]}" for i, d in enumerate(days)
                 for k, name in enumerate(NAMES)]
        path.write_text("\n".join(["date,contract,open_interest", *lines]) + "\n")
        return choose_front(OpenInterestRoll(publication_days=wait, table=path), rows, ES)

    other = figures.copy()
    other[day:] = rng.integers(0, 1000, other[day:].shape)
    known = ts < (days[day] + 1 + wait) * 86_400 * 10**9
    one, two = (front_rows(schedule(values), rows)[known] for values in (figures, other))
    np.testing.assert_array_equal(one, two)

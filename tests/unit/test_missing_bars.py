"""Missing (filled) bars have no market: an order waits through them and executes at the first real open, never at
the close that was observed."""

import dataclasses

import numpy as np
import pytest

from algospace.clock import ReplayClock
from algospace.errors import ConfigError, InputError
from algospace.execution.journal import Filled, MemoryJournal, Ordered
from algospace.execution.ledger import open_orders
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.features import build
from algospace.features.market_table import MANIFEST, MarketTable
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import MatrixConfig
from algospace.instruments import INSTRUMENTS
from algospace.types import Bars
from envs.config import CoreEnvConfig, RiskEnvConfig
from envs.core_env import CoreEnv
from envs.opportunities import last_with_exit
from envs.risk_env import RiskEnv
from envs.vector_core import VectorCoreEnv
from tests.env_market import fill_in, random_table, source_bars, without_gaps
from tests.session_market import ReplayPolicy
from training import dataset
from training.config import RunConfig

SYNTH = INSTRUMENTS["SYNTH"]
DECIDED, GAP, N = 40, 5, 200
"""The order is decided at the close of row DECIDED; the GAP rows after it are missing."""
FIRST_REAL = DECIDED + GAP + 1
TICK = 0.25


def gap_table(roll: float = 1.0, new_day: bool = False) -> MarketTable:
    table = without_gaps(random_table(11, N, rolls=False))
    table.roll[DECIDED + 2] = roll
    filled = np.zeros(N, bool)
    filled[DECIDED + 1:FIRST_REAL] = True
    fill_in(table, filled)
    assert abs(table.open[FIRST_REAL] - table.close[DECIDED]) > 4 * TICK, "the gap must show where it filled"
    day = np.full(N, 20_000, np.int32)
    if new_day:
        day[DECIDED + 3:] += 1
    return dataclasses.replace(table, day=day)


def one_order(side: float) -> OrderArrays:
    want = np.zeros(N)
    want[DECIDED] = side
    return OrderArrays.build(want, want != 0.0, 400.0, 800.0, np.arange(N) / N)


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("roll", [1.0, 1.01])
@pytest.mark.parametrize("new_day", [False, True])
def test_an_order_waits_for_the_first_real_open(side, roll, new_day):
    table, journal, venue = gap_table(roll, new_day), MemoryJournal(), SimulatedVenue(SYNTH)
    slow = Session(ReplayClock(), TableFeed(table), venue, ReplayPolicy(one_order(side), 0), None, journal).run()
    fast = run_precomputed(table, 0, N, one_order(side), venue)
    for result in (slow, fast):
        first = result.fills[0]
        assert (first["row"], first["quantity"]) == (FIRST_REAL, side)
        assert first["price"] == table.open[FIRST_REAL] + side * TICK
        assert (result.equity[:FIRST_REAL] == result.initial_equity).all()
        assert not result.position[:FIRST_REAL].any()
        assert result.position[FIRST_REAL] == side
    assert slow.fills.tobytes() == fast.fills.tobytes()
    orders = [record for record in journal if isinstance(record, Ordered)]
    fills = [record for record in journal if isinstance(record, Filled)]
    assert [order.row for order in orders] == [DECIDED]
    assert fills[0].order_id == orders[0].order_id
    records = list(journal)
    assert records.index(orders[0]) < records.index(fills[0])


def test_a_waiting_order_is_open_in_the_journal_until_it_is_filled():
    """A new trading day on a filled bar is journalled while the order waits, and does not make it look played."""
    table, journal = gap_table(new_day=True), MemoryJournal()
    session = Session(ReplayClock(), TableFeed(table), SimulatedVenue(SYNTH), ReplayPolicy(one_order(1.0), 0),
                      None, journal)
    for bar in TableFeed(table):
        session.on_bar(bar)
        waiting = [order.row for order in open_orders(journal)]
        assert waiting == ([DECIDED] if DECIDED <= bar.row < FIRST_REAL else [])


def test_brackets_do_not_trade_in_missing_bars():
    """A held position passes the gap untouched; a stop that the first real open has jumped fills at that open."""
    table = gap_table()
    want = np.zeros(N)
    want[DECIDED - 1] = side = -np.sign(table.open[FIRST_REAL] - table.close[DECIDED])
    entry = table.open[DECIDED] + side * TICK
    worst = max(-side * (table.high[DECIDED] - entry), -side * (table.low[DECIDED] - entry), 0.0)
    stop = worst + TICK
    for column in (table.open, table.high, table.low, table.close):
        column[FIRST_REAL] -= side * (stop + 50.0)
    result = run_precomputed(table, 0, N, OrderArrays.build(want, want != 0.0, stop), SimulatedVenue(SYNTH))
    assert result.fills["row"].tolist() == [DECIDED, FIRST_REAL]
    assert result.fills["price"][1] == table.open[FIRST_REAL] - side * TICK
    assert (result.position[DECIDED:FIRST_REAL] == side).all()
    assert (result.equity[DECIDED:FIRST_REAL] == result.equity[DECIDED]).all()


def placed(table: MarketTable, mechanics: str) -> VectorCoreEnv:
    """Two environments, the second mirrored, at row DECIDED."""
    config = CoreEnvConfig(mechanics=mechanics, episode_bars=32, initial_equity=5_000_000.0)
    proposals = np.tile(np.array([1.0, 400.0, 800.0], np.float32), (N, 2, 1))
    env = VectorCoreEnv(table, SYNTH, config, proposals, 30, N, 2, 1, 1.0, mirror=False)
    state = env.get_state()
    state["rows"][:], state["ends"][:], state["signs"][:] = DECIDED, DECIDED + 32, [1.0, -1.0]
    state["voting"][:] = True
    state["accounts"]["mark"], state["accounts"]["day"] = table.close[DECIDED], table.day[DECIDED]
    env.set_state(state)
    return env


@pytest.mark.parametrize("mechanics", ["full", "unit"])
def test_the_environments_order_waits_and_travels_with_the_state(mechanics):
    table = gap_table()
    env = placed(table, mechanics)
    rewards, discounts = np.ones(2, np.float32), np.zeros(2, np.float32)
    before = env.accounts.copy()
    for row in range(DECIDED, FIRST_REAL):
        successor = placed(table, mechanics)
        successor.set_state(env.get_state())
        env = successor
        assert (env.rows == row).all()
        env.vote(np.full((2, 3), 2, np.int8))
        env.execute(np.ones(2, np.int8), rewards, discounts)
        if row < FIRST_REAL - 1:
            assert env.accounts.tobytes() == before.tobytes()
            assert not rewards.any()
            assert env.get_state()["pending"].all()
    assert env.accounts["position"].tolist() == [1.0, -1.0]
    assert not env.get_state()["pending"].any()
    if mechanics == "full":
        assert env.accounts["entry"].tolist() == [table.open[FIRST_REAL] + TICK, table.open[FIRST_REAL] - TICK]
        np.testing.assert_allclose(env.accounts["stop"], env.accounts["entry"] - np.array([400.0, -400.0]))


def test_the_readable_environment_waits_too():
    table = gap_table()
    config = CoreEnvConfig(episode_bars=32, initial_equity=5_000_000.0)
    proposals = np.tile(np.array([1.0, 400.0, 800.0], np.float32), (N, 2, 1))
    env = CoreEnv(table, SYNTH, config, proposals, 30, N, 1, 1.0, mirror=False)
    env.row, env.end = DECIDED, DECIDED + 32
    for _ in range(GAP + 1):
        assert env.account["position"] == 0.0
        env.vote((2, 2, 2))
        env.execute(1)
    assert env.row == FIRST_REAL
    assert env.account["entry"] == table.open[FIRST_REAL] + TICK


def test_the_risk_environments_entry_and_timed_exit_wait():
    table = gap_table()
    table.filled[FIRST_REAL + 3:FIRST_REAL + 6] = True
    fill_in(table, table.filled.copy())
    env = RiskEnv(table, SYNTH, RiskEnvConfig(max_bars=3, initial_equity=5_000_000.0), 30, N, 1, mirror=False)
    env.row = DECIDED
    start = env.account["equity"].item()
    exit_row = env._play_bracket(1.0, 4000.0, 0.0)
    assert exit_row == FIRST_REAL + 6
    gross = table.open[exit_row] - TICK - (table.open[FIRST_REAL] + TICK)
    expected = start + gross * SYNTH.multiplier - 2.0 * SYNTH.commission
    np.testing.assert_allclose(env.account["equity"], expected, rtol=1e-12)


def test_brackets_of_the_risk_environment_end_inside_the_split():
    filled = np.zeros(30, bool)
    assert last_with_exit(filled, 0, 30 - 4 - 2, 4, 30) == 24
    filled[26:] = True  # no real bar after row 25: entry at 21, four bars, exit at 25
    assert last_with_exit(filled, 0, 24, 4, 30) == 20
    filled[1:] = True
    assert last_with_exit(filled, 0, 24, 4, 30) == -1
    table = without_gaps(random_table(3, 120))
    table.filled[40:] = True
    with pytest.raises(ConfigError, match="missing bars"):
        RiskEnv(table, SYNTH, RiskEnvConfig(max_bars=20), 30, 120, 1)


def test_tables_without_the_column_are_refused(tmp_path):
    random_table(1, 60).save(tmp_path / "market")
    manifest = tmp_path / "market" / MANIFEST
    loaded = MarketTable.load(tmp_path / "market")
    assert loaded.filled.tobytes() == random_table(1, 60).filled.tobytes()
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(InputError, match="not a market table of format 2"):
        MarketTable.load(tmp_path / "market")


def test_missing_bars_of_a_market_repeat_the_close_before_and_are_marked():
    bars = source_bars(6_000)
    kept = np.ones(len(bars), bool)
    for first, count in ((3_000, 1), (4_000, 11), (5_000, 12)):  # twelve are a session break: nothing is filled
        kept[first:first + count] = False
    columns = {name: getattr(bars, name)[kept] for name in ("ts_open", "open", "high", "low", "close", "volume")}
    features = build(Bars(**columns, width_ns=bars.width_ns), SYNTH)
    table = assemble(features, Normaliser.fit(features, MatrixConfig(), int(features.ts_close[-1])), SYNTH)
    rows = np.flatnonzero(table.filled)
    assert rows.size == 12
    for price in (table.open, table.high, table.low, table.close):
        np.testing.assert_array_equal(price[rows], table.close[rows - 1])
    assert not table.decision[rows].any()


def test_the_hash_of_a_dataset_knows_the_format_of_its_tables(monkeypatch):
    config = RunConfig(name="q", market={"instrument": "SYNTH", "synthetic": {"scenario": "easy"}})
    before = dataset.tables_digest(config, "easy", None)
    assert before == dataset.tables_digest(config, "easy", None)
    monkeypatch.setattr(dataset, "TABLE_FORMAT", dataset.TABLE_FORMAT - 1)
    assert before != dataset.tables_digest(config, "easy", None)

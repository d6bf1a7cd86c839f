"""Synthetic markets with known truth: planted regimes whose best possible trading result is solved.

`generate("easy", seed=1, n_bars=500_000)` gives bars and, for the planted scenarios, what the exact Bayes
filter knows at every close and the position that the optimal cost-aware rule takes there.

Planted markets run around the clock from a fixed Monday and their prices are not rounded to ticks: returns are
simple close-to-close returns, exactly those that were drawn (to 1e-12), at any price level. Inside a bar lies
a Brownian bridge whose volatility is the same in all regimes, and volume is drawn apart from everything, so the
returns are sufficient: nobody who sees the bars can know more than the filter. The bar before the first closes
at the start price, and the return before the first bar counts as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import algospace
from algospace.config import FrozenConfig
from algospace.errors import ConfigError
from algospace.files import atomic_directory, sha256_file, write_json
from algospace.marketdata.bayes_filter import STATES, PlantedHmm, bayes_filter
from algospace.marketdata.bayes_limit import cached_limit, limit_positions
from algospace.marketdata.schema import bars_to_table
from algospace.marketdata.synthetic_paths import planted_bars, planted_returns
from algospace.marketdata.synthetic_session import SessionOptions, fill_session
from algospace.seeding import stream_key
from algospace.types import BASE_BAR_NS, AnyArray, Bars, FloatArray, IntArray

START_TS_NS = 946_857_600 * 1_000_000_000  # Monday 2000-01-03 00:00 UTC
START_PRICE = 5000.0
TICK_SIZE = 0.25
_VOLUME_SCALE = 200.0  # mean contracts per minute
_MAX_BARS = 6_000_000  # planted markets stay inside the calendar tables, which end in 2060
_PARTS: dict[str, int] = {"5m": 1, "1m": 5}
_TS = pa.timestamp("ns", tz="UTC")
Resolution = Literal["5m", "1m"]


class Scenario(FrozenConfig):
    """A market to generate. Drifts and volatilities in basis points, durations in 5-minute bars."""

    name: str
    mu_bp: float
    phi: float
    durations: tuple[float, float, float, float]
    sigma_bp: tuple[float, float, float, float] = (5.0, 5.0, 6.0, 11.0)
    bridge_bp: float = 6.0
    session: SessionOptions | None = None

    @property
    def has_limit(self) -> bool:
        """Whether belief, expected return and the limit's position are known."""
        return self.session is None

    def hmm(self) -> PlantedHmm:
        """The hidden Markov model behind the returns."""
        mu = np.array([self.mu_bp, -self.mu_bp, 0.0, 0.0]) * 1e-4
        phi = np.array([0.0, 0.0, self.phi, 0.0])
        return PlantedHmm(mu, phi, np.array(self.sigma_bp) * 1e-4, np.array(self.durations))


SCENARIOS: dict[str, Scenario] = {
    s.name: s
    for s in (
        Scenario(name="easy", mu_bp=0.65, phi=-0.25, durations=(80, 80, 120, 80)),
        Scenario(name="mid", mu_bp=0.42, phi=-0.19, durations=(100, 100, 120, 80)),
        Scenario(name="hard", mu_bp=0.28, phi=-0.13, durations=(120, 120, 120, 80)),
        Scenario(name="martingale", mu_bp=0.0, phi=0.0, durations=(80, 80, 120, 80)),
        Scenario(name="session", mu_bp=0.42, phi=-0.19, durations=(100, 100, 120, 80), session=SessionOptions()),
        Scenario(name="stress", mu_bp=0.42, phi=-0.19, durations=(100, 100, 120, 80),
                 session=SessionOptions(jump_rate=0.006, jump_bp=40.0, overnight_gap_bp=25.0, weekend_gap_bp=80.0,
                                        crash_rate=0.0002, halt_rate=0.0003, hole_rate=0.004)),
    )
}


@dataclass(frozen=True)
class SyntheticTruth:
    """What is true of base bar t, arrays of length n.

    regime int8 (index into STATES) in which bar t was drawn; belief (n, 4) = P(regime of t | returns up to t);
    expected_return = E[r_{t+1} | returns up to t], a fraction; limit_position int8: decided at close t and held
    over bar t+1. The last three are None where the limit is not solved.
    """

    ts_close: IntArray
    regime: AnyArray
    belief: FloatArray | None
    expected_return: FloatArray | None
    limit_position: AnyArray | None

    def __len__(self) -> int:
        return int(self.ts_close.size)


@dataclass(frozen=True)
class SyntheticMarket:
    """Bars of a scenario (5-minute, or 1-minute that aggregate to them) and their truth per base bar."""

    scenario: Scenario
    seed: int
    bars: Bars
    truth: SyntheticTruth


def scenario_named(name: str) -> Scenario:
    """The scenario; ConfigError lists the known ones."""
    try:
        return SCENARIOS[name]
    except KeyError:
        raise ConfigError(f"unknown scenario '{name}'; known: {', '.join(SCENARIOS)}") from None


def generate(scenario: str | Scenario, seed: int, n_bars: int, resolution: Resolution = "5m") -> SyntheticMarket:
    """A market of `n_bars` base bars. The same seed gives the same market; a longer one starts with a shorter.

    `resolution="1m"` gives 5·n_bars one-minute bars that aggregate to exactly the same base bars (volume
    included). Solving a limit for the first time takes seconds; it is then cached.
    """
    chosen = scenario if isinstance(scenario, Scenario) else scenario_named(scenario)
    if not 2 <= n_bars <= _MAX_BARS:
        raise ConfigError(f"a synthetic market has 2 to {_MAX_BARS} bars, got {n_bars}")
    if resolution not in _PARTS:
        raise ConfigError(f"resolution '{resolution}': choose one of {', '.join(_PARTS)}")
    parts = _PARTS[resolution]
    key = stream_key("synthetic market", chosen.name, seed)
    if chosen.session is None:
        return _generate_planted(chosen, seed, key, n_bars, parts)
    return _generate_session(chosen, chosen.session, seed, key, n_bars, parts)


def _generate_planted(scenario: Scenario, seed: int, key: int, n_bars: int, parts: int) -> SyntheticMarket:
    hmm = scenario.hmm()
    regime, returns = np.empty(n_bars, np.int8), np.empty(n_bars)
    planted_returns(np.uint64(key), hmm.stationary, hmm.leave, hmm.mu, hmm.phi, hmm.sigma, regime, returns)
    columns = _empty_columns(n_bars * parts)
    planted_bars(np.uint64(key), START_PRICE, returns, scenario.bridge_bp * 1e-4, _VOLUME_SCALE, parts, *columns)
    ts_open = START_TS_NS + np.arange(n_bars * parts, dtype=np.int64) * (BASE_BAR_NS // parts)
    bars = Bars(ts_open, *columns, BASE_BAR_NS // parts)
    belief, expected = bayes_filter(hmm, returns)
    position = limit_positions(cached_limit(hmm), belief, expected, returns)
    truth = SyntheticTruth(ts_open[::parts] + BASE_BAR_NS, regime, belief, expected, position)
    return SyntheticMarket(scenario, seed, bars, truth)


def _generate_session(scenario: Scenario, options: SessionOptions, seed: int, key: int, n_bars: int,
                      parts: int) -> SyntheticMarket:
    columns = _empty_columns(n_bars * parts)
    ts_open, regime = np.empty(n_bars * parts, np.int64), np.empty(n_bars, np.int8)
    fill_session(key, START_TS_NS, START_PRICE, TICK_SIZE, scenario.hmm(), options, scenario.bridge_bp * 1e-4,
                 parts, ts_open, regime, columns)
    truth = SyntheticTruth(ts_open[::parts] + BASE_BAR_NS, regime, None, None, None)
    return SyntheticMarket(scenario, seed, Bars(ts_open, *columns, BASE_BAR_NS // parts), truth)


def _empty_columns(n: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    return np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)


def write_market(market: SyntheticMarket, folder: Path | str) -> None:
    """bars.parquet, truth.parquet and manifest.json; the folder appears whole or not at all."""
    with atomic_directory(folder) as part:
        pq.write_table(bars_to_table(market.bars), part / "bars.parquet", compression="zstd")
        pq.write_table(truth_table(market.truth), part / "truth.parquet", compression="zstd")
        manifest = {
            "algospace": algospace.__version__,
            "instrument": "SYNTH",
            "scenario": market.scenario.model_dump(mode="json"),
            "scenario_sha256": market.scenario.digest(),
            "seed": market.seed,
            "base_bars": len(market.truth),
            "rows": len(market.bars),
            "width_ns": market.bars.width_ns,
            "files": {name: sha256_file(part / name) for name in ("bars.parquet", "truth.parquet")},
        }
        write_json(part / "manifest.json", manifest)


def truth_table(truth: SyntheticTruth) -> pa.Table:
    """Columns ts_close (UTC), regime; belief_*, expected_return, limit_position where the limit is solved."""
    columns: dict[str, Any] = {"ts_close": pa.array(truth.ts_close, _TS), "regime": truth.regime}
    if truth.belief is not None and truth.expected_return is not None and truth.limit_position is not None:
        columns |= {f"belief_{state}": truth.belief[:, k] for k, state in enumerate(STATES)}
        columns |= {"expected_return": truth.expected_return, "limit_position": truth.limit_position}
    return pa.table(columns)


def read_truth(path: Path | str) -> SyntheticTruth:
    """`truth.parquet` as written by `write_market`."""
    table = pq.read_table(path)
    held = {name: table.column(name).to_numpy() for name in table.column_names}
    held["ts_close"] = table.column("ts_close").cast(pa.int64()).to_numpy()
    if "expected_return" not in held:
        return SyntheticTruth(held["ts_close"], held["regime"], None, None, None)
    belief = np.stack([held[f"belief_{state}"] for state in STATES], axis=1)
    return SyntheticTruth(held["ts_close"], held["regime"], belief, held["expected_return"],
                          held["limit_position"])

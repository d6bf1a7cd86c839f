"""Synthetic markets tick by tick: every scenario of `generate` as trade prints with quotes, side and contract.

`generate_ticks("easy", seed=1, n_bars=5_000)` refines the one-minute bars of the same scenario and seed:

- **Aggregation.** The prints of a base bar have exactly its open, high, low, close and volume, bit for bit, in
  all scenarios (the same holds for the prices of one-minute bars, and for their volume but in minutes of less
  than four contracts, which borrow from a neighbour). So `build_from_ticks` gives the closes of `generate`; the
  last bar stays open, as always with ticks.
- **Rounding.** A planted market's prices are not on the tick grid, since half a tick of noise would hide part of
  what the filter knows; its prints keep the unrounded path. `session` and `stress` prices are on the grid.
- **Quotes.** The print *is* the path: a buyer's print is the ask, a seller's the bid, and the other side lies one
  spread away. The bid-ask bounce thus shows in the quotes' middle, and not in the closes. The spread is one tick
  mostly, wider in quiet hours and when the last minutes' range is many times the usual one (a crash).
- **Arrivals.** A minute has volume / `contracts_per_tick` prints on average, four at least; the volume of session
  markets follows the time of day, planted markets take the same curve for the number of prints alone.
- **Order flow.** P(buy) of a freshly drawn side is 1/2 + `imbalance` in regime up, 1/2 - `imbalance` in down and
  1/2 in range and noise. Where the price changed, a side is that of the change with probability `tick_rule`; else
  it is the last side with probability `persistence`, else fresh. With tick_rule = 0 the share of buys in a long
  regime is the fresh one; the rule dilutes it by the moves of the price.
- **The limit.** Volume, range and spread of a planted market tell nothing about the regime beyond the returns.
  With `imbalance` > 0 the flow does: the Bayes filter on returns no longer bounds a trader who sees it, so the
  truth's belief, expected_return and limit_position are then None. With `imbalance` = 0 they are `generate`'s.
- **Holes.** In a halt nothing trades and the first print after it gaps; in missing stretches the prints are absent
  while the market moved on. Both are those of the session's bars (SessionOptions).
- **Rolls.** The contract changes on the Monday before each quarter's third Friday; raw prices jump by the basis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from algospace.config import FrozenConfig
from algospace.marketdata.synthetic import (
    TICK_SIZE,
    Scenario,
    SyntheticTruth,
    generate,
    scenario_named,
)
from algospace.marketdata.synthetic_rolls import contract_codes, with_rolls
from algospace.marketdata.synthetic_tick_kernels import MINUTES, Flow, count_prints, fill_prints, new_state
from algospace.seeding import stream_key, uniforms
from algospace.types import BASE_BAR_NS, Bars, FloatArray, Ticks

BLOCK_BARS = 2048  # base bars that are refined at a time
_MS = 1_000_000
_DIRECTION = np.array([1.0, -1.0, 0.0, 0.0])  # of the regimes up, down, range, noise
_SESSION_IMBALANCE, _SESSION_BASIS_BP = 0.1, 60.0


class TickOptions(FrozenConfig):
    """How bars become prints.

    imbalance: excess probability of a buy in regime up (None: 0 where the scenario's limit is solved, else 0.1).
    roll_basis_bp: mean price step at a quarterly roll (None: 0, a single contract, where the limit is solved, else
    60). latency_ms: mean delay of ts_recv, half of it fixed, half exponential; 0: received as it happens.
    Faults for robustness tests: late_rate: share of prints delivered 0.5 to 1.5 · `late_ms` late, so out of
    order (ts_recv says when); duplicate_rate: share delivered twice. Faults never move a print out of its
    2048 bars.
    """

    contracts_per_tick: float = Field(default=20.0, gt=0)
    most_per_minute: int = Field(default=100_000, ge=4)
    imbalance: float | None = Field(default=None, ge=0, le=0.5)
    persistence: float = Field(default=0.5, ge=0, lt=1)
    tick_rule: float = Field(default=0.25, ge=0, lt=1)
    roll_basis_bp: float | None = Field(default=None, ge=0)
    latency_ms: float = Field(default=0.0, ge=0)
    late_rate: float = Field(default=0.0, ge=0, le=0.1)
    late_ms: float = Field(default=2_000.0, ge=0)
    duplicate_rate: float = Field(default=0.0, ge=0, le=0.1)

    def resolved(self, scenario: Scenario) -> TickOptions:
        """The same with the scenario's values in the place of None."""
        solved = scenario.has_limit
        imbalance = (0.0 if solved else _SESSION_IMBALANCE) if self.imbalance is None else self.imbalance
        basis = (0.0 if solved else _SESSION_BASIS_BP) if self.roll_basis_bp is None else self.roll_basis_bp
        return self.model_copy(update={"imbalance": imbalance, "roll_basis_bp": basis})

    @property
    def has_faults(self) -> bool:
        """Whether prints come late or twice."""
        return self.late_rate > 0 or self.duplicate_rate > 0

    def buy_probability(self) -> FloatArray:
        """(4,) P(buy) of a fresh side in each regime."""
        return 0.5 + (self.imbalance or 0.0) * _DIRECTION


@dataclass(frozen=True)
class SyntheticTickMarket:
    """Prints of a scenario; `bars` are the raw base bars they aggregate to, truth is per base bar.

    `options` are resolved; contracts[code] names each contract code.
    """

    scenario: Scenario
    seed: int
    options: TickOptions
    contracts: tuple[str, ...]
    ticks: Ticks
    bars: Bars
    truth: SyntheticTruth


@dataclass(frozen=True)
class TickPlan:
    """All of a market but its prints: the one-minute bars to refine (raw prices and contracts), and the truth."""

    scenario: Scenario
    seed: int
    options: TickOptions
    contracts: tuple[str, ...]
    minutes: Bars
    truth: SyntheticTruth

    def blocks(self) -> Iterator[Ticks]:
        """The prints, `BLOCK_BARS` base bars at a time, in order; together they are `ticks()`."""
        state, rows = new_state(), BLOCK_BARS * MINUTES
        for number, first in enumerate(range(0, len(self.minutes), rows)):
            ticks = _refine(self, first, min(first + rows, len(self.minutes)), state)
            yield _with_faults(ticks, self.options, stream_key("synthetic faults", self.key), number)

    def ticks(self) -> Ticks:
        """All prints."""
        if not self.options.has_faults:
            return _refine(self, 0, len(self.minutes), new_state())
        parts = [part.columns() for part in self.blocks()]
        return Ticks(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    @property
    def key(self) -> int:
        """Of all draws of the prints."""
        return stream_key("synthetic ticks", self.scenario.name, self.seed)


def plan_ticks(scenario: str | Scenario, seed: int, n_bars: int, options: TickOptions | None = None) -> TickPlan:
    """What `generate_ticks` refines, for those who write or stream prints block by block."""
    chosen = scenario if isinstance(scenario, Scenario) else scenario_named(scenario)
    settings = (options or TickOptions()).resolved(chosen)
    market = generate(chosen, seed, n_bars, resolution="1m")
    minutes, names = market.bars, ["H00"]
    if settings.roll_basis_bp:
        codes, names = contract_codes(minutes.ts_open)
        minutes = with_rolls(minutes, codes, settings.roll_basis_bp, _grid(chosen), seed)
    truth = market.truth
    if settings.imbalance:
        truth = replace(truth, belief=None, expected_return=None, limit_position=None)
    return TickPlan(chosen, seed, settings, tuple(f"SYNTH{name}" for name in names), minutes, truth)


def generate_ticks(
    scenario: str | Scenario, seed: int, n_bars: int, options: TickOptions | None = None
) -> SyntheticTickMarket:
    """A market of `n_bars` base bars as prints (53 bytes each; 45 a bar in planted markets, 150 in sessions).

    The same seed gives the same prints on any machine; without faults a longer market starts with a shorter one.
    """
    plan = plan_ticks(scenario, seed, n_bars, options)
    return SyntheticTickMarket(plan.scenario, seed, plan.options, plan.contracts, plan.ticks(),
                               base_bars(plan.minutes), plan.truth)


def base_bars(minutes: Bars) -> Bars:
    """One-minute bars, five to each base bar, as base bars."""
    high, low = minutes.high.reshape(-1, MINUTES).max(axis=1), minutes.low.reshape(-1, MINUTES).min(axis=1)
    volume = minutes.volume.reshape(-1, MINUTES).sum(axis=1)
    close = minutes.close[MINUTES - 1::MINUTES]
    return Bars(minutes.ts_open[::MINUTES], minutes.open[::MINUTES], high, low, close, volume, BASE_BAR_NS,
                minutes.contract[::MINUTES])


def _grid(scenario: Scenario) -> float:
    """What prices are rounded to; 0 for planted markets."""
    return 0.0 if scenario.has_limit else TICK_SIZE


def _refine(plan: TickPlan, first: int, stop: int, state: tuple[FloatArray, FloatArray]) -> Ticks:
    """The prints of minutes [first, stop), whole base bars; `state` carries on to the next block."""
    o, scenario, part = plan.options, plan.scenario, plan.minutes.slice(first, stop)
    calm_range = scenario.bridge_bp * 1e-4 / math.sqrt(MINUTES)
    flow = Flow(o.contracts_per_tick, o.most_per_minute, scenario.has_limit, o.persistence, o.tick_rule,
                o.latency_ms * _MS, calm_range)
    key = np.uint64(plan.key)
    allotted, counts = np.empty(len(part)), np.empty(len(part), np.int64)
    count_prints(key, first, part.ts_open, part.volume, flow, allotted, counts)
    buy = np.repeat(o.buy_probability()[plan.truth.regime[first // MINUTES:stop // MINUTES]], MINUTES)
    n = int(counts.sum())
    ts, ts_recv, aggressor = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int8)
    price, size, bid, ask = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    fill_prints(key, first, part.ts_open, part.open, part.high, part.low, part.close, allotted, counts, buy,
                _grid(scenario), TICK_SIZE, flow, *state, ts, price, size, bid, ask, aggressor, ts_recv)
    return Ticks(ts, price, size, bid, ask, aggressor, ts_recv, np.repeat(part.contract, counts))


def _with_faults(ticks: Ticks, options: TickOptions, key: int, block: int) -> Ticks:
    """Late prints moved to where they are received, duplicated prints repeated."""
    if not options.has_faults:
        return ticks
    assert ticks.ts_recv is not None
    u = np.empty((len(ticks), 3))
    uniforms(np.uint64(key), block, u)
    delay = np.where(u[:, 0] < options.late_rate, options.late_ms * _MS * (0.5 + u[:, 1]), 0.0)
    received = np.minimum(ticks.ts_recv + delay.astype(np.int64), ticks.ts_recv[-1])
    order = np.argsort(received, kind="stable")
    copies = 1 + (u[:, 2] < options.duplicate_rate).astype(np.int64)
    return replace(ticks, ts_recv=received).take(np.repeat(order, copies[order]))

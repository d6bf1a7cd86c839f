"""The M-RMS against fixed rules: the same opportunities, mechanics, costs and hard limits for all.

Every rule answers every opportunity (envs.risk_play); one that a limit refuses returns 0. Ratios are per
opportunity, and per trading day of as many accounts side by side as there are tours. Intervals of differences
resample trading days, the same ones for both rules (stationary bootstrap). What a rule has to choose (the best
pair of stop and target, a Kelly fraction) it chooses on training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.risk import RiskNet
from algospace.analysis.metrics import bootstrap_indices, max_drawdown
from algospace.features.market_table import MarketTable
from algospace.instruments import instrument
from algospace.risk.measures import kelly_fraction
from algospace.types import AnyArray, Float32Array, FloatArray
from envs.config import SIZE_CHOICES, STOP_ATRS, STOP_CHOICES, TARGET_CHOICES, TARGET_RS, RiskEnvConfig
from envs.risk_play import Opportunities, Play, RiskField
from training.dataset import Dataset, Split
from training.experts import load_regime, regime_columns
from training.team_training import load_team

TEAM = "M-RMS"
DAYS_PER_YEAR = 252.0
MEAN_BLOCK_DAYS = 5.0
RISK_SHARE = 0.01
"""Of equity, by fixed fractional sizing."""
TRAINING_TOURS = 2
"""Walks through the training rows for what the fixed rules choose there."""
_TWO_R = TARGET_RS.index(2.0)


@dataclass(frozen=True)
class Proposals:
    """K answers of one rule; see RiskField.play."""

    contracts: FloatArray
    fractions: FloatArray
    stops: FloatArray
    targets: FloatArray


Rule = Callable[[Opportunities], Proposals]


@dataclass(frozen=True)
class FixedChoice:
    """What the fixed rules learn from training rows: the (stop, target) choices with the best Sortino ratio, for
    one contract and for `RISK_SHARE` of equity, and Kelly fractions of equity at risk."""

    pair: tuple[int, int]
    pair_share: tuple[int, int]
    kelly: float
    kelly_pair: float


@dataclass(frozen=True)
class RuleScore:
    """One rule over all judged opportunities.

    Ratios None without a loss or variance; `sortino` and `sharpe` per opportunity, `_day` annualised. net: account
    currency per opportunity. drawdown: worst account, mean_drawdown: of all. size: mean contracts of the trades.
    traded: share of opportunities; limited, refused: share of proposals that a hard limit reduced, or to nothing.
    """

    sortino: float | None
    sharpe: float | None
    sortino_day: float | None
    sharpe_day: float | None
    net: float
    drawdown: float
    mean_drawdown: float
    win_rate: float | None
    size: float | None
    traded: float
    limited: float
    refused: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def constant(stop: int, target: int, contracts: float = 0.0, fraction: float = 0.0) -> Rule:
    """One bracket for every opportunity, and a number of contracts or a share of equity at risk."""
    def rule(spots: Opportunities) -> Proposals:
        k = len(spots)
        return Proposals(np.full(k, contracts), np.full(k, fraction), spots.brackets[:, stop, target, 0].copy(),
                         spots.brackets[:, stop, target, 1].copy())
    return rule


def random_rule(seed: int, least: int) -> Rule:
    """Size (from `least` contracts on), stop and target drawn evenly."""
    def rule(spots: Opportunities) -> Proposals:
        rng, k = np.random.default_rng(seed), len(spots)
        return chosen(spots, np.stack([rng.integers(low, high, k) for low, high in
                                       ((least, SIZE_CHOICES), (0, STOP_CHOICES), (0, TARGET_CHOICES))], axis=1))
    return rule


def team_rule(choices: AnyArray) -> Rule:
    """The choices (K, 3) that were made for exactly these opportunities."""
    return lambda spots: chosen(spots, choices)


def chosen(spots: Opportunities, choices: AnyArray) -> Proposals:
    """Choices (K, 3) of size, stop and target as proposals."""
    k = np.arange(len(spots))
    brackets = spots.brackets[k, choices[:, 1], choices[:, 2]]
    return Proposals(choices[:, 0].astype(np.float64), np.zeros(k.size), brackets[:, 0].copy(),
                     brackets[:, 1].copy())


def choose_fixed(field: RiskField) -> FixedChoice:
    """Play every pair on training opportunities; ties go to the nearer levels."""
    best: list[tuple[int, int]] = []
    for contracts, fraction in ((1.0, 0.0), (0.0, RISK_SHARE)):
        ratios = np.array([[sortino(play_rule(field, constant(s, t, contracts, fraction)).returns) or -np.inf
                            for t in range(TARGET_CHOICES)] for s in range(STOP_CHOICES)])
        stop, target = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
        best.append((int(stop), int(target)))
    return FixedChoice(best[0], best[1], _kelly(field, STOP_ATRS.index(2.0), _TWO_R), _kelly(field, *best[0]))


def _kelly(field: RiskField, stop: int, target: int) -> float:
    """Mean over variance of profits in units of the loss at the stop; 0 where there is nothing to win."""
    loss = field.opportunities.brackets[:, stop, target, 0] * field.instrument.multiplier
    return max(kelly_fraction(field.outcomes()[:, stop, target].astype(np.float64) / loss) or 0.0, 0.0)


def fixed_rules(choice: FixedChoice, seed: int, least: int) -> dict[str, Rule]:
    """Every rule that the M-RMS is held against."""
    rules: dict[str, Rule] = {}
    for stop, name in enumerate((*(f"{atr:g} ATR" for atr in STOP_ATRS), "beyond LVN")):
        rules[f"1 contract, {name}, 2R"] = constant(stop, _TWO_R, contracts=1.0)
        rules[f"1 %, {name}, 2R"] = constant(stop, _TWO_R, fraction=RISK_SHARE)
    rules["1 contract, best pair of training"] = constant(*choice.pair, contracts=1.0)
    rules["1 %, best pair of training"] = constant(*choice.pair_share, fraction=RISK_SHARE)
    rules["Kelly, 2 ATR, 2R"] = constant(STOP_ATRS.index(2.0), _TWO_R, fraction=choice.kelly)
    rules["Kelly, best pair of training"] = constant(*choice.pair, fraction=choice.kelly_pair)
    rules["random"] = random_rule(seed, least)
    rules["no trade"] = constant(0, 0)
    return rules


@torch.no_grad()
def team_choices(net: RiskNet, table: MarketTable, regime: Float32Array, rows: AnyArray,
                 sides: FloatArray) -> AnyArray:
    """(K, 3) most probable choices, dropout off, on scattered rows; equal to training.experts.propose there.

    regime (m, 8): the frozen RDE's vector of every 30-minute row.
    """
    rows_30m = np.maximum(np.asarray(table.row_30m)[rows].astype(np.int64), 0)
    parts = []
    for first in range(0, rows.size, 4096):
        part, slow = rows[first: first + 4096].astype(np.int64), rows_30m[first: first + 4096]
        state = net.state(_windows(table.strategic, slow, net.shapes.strategic_window),
                          _windows(table.tactical, part, net.shapes.tactical_window),
                          torch.from_numpy(np.asarray(regime[slow], np.float32)),
                          torch.from_numpy(sides[first: first + 4096, None].astype(np.float32)))
        parts.append(net.logits(net.trunk(state), torch.ones(())).argmax(-1).numpy())
    return np.concatenate(parts)


def _windows(rows: AnyArray, ends: AnyArray, window: int) -> torch.Tensor:
    span = np.maximum(ends[:, None] + np.arange(1 - window, 1), 0)
    return torch.from_numpy(np.nan_to_num(np.asarray(rows)[span].astype(np.float32)))


def play_rule(field: RiskField, rule: Rule) -> Play:
    """A rule over a field's opportunities."""
    answers = rule(field.opportunities)
    return field.play(answers.contracts, answers.fractions, answers.stops, answers.targets)


def sortino(returns: FloatArray) -> float | None:
    """Mean over the root mean square of the losses among all returns; None without a loss."""
    downside = float(np.sqrt(np.mean(np.minimum(returns, 0.0) ** 2)))
    return float(returns.mean()) / downside if downside > 0.0 else None


def sharpe(returns: FloatArray) -> float | None:
    """Mean over standard deviation; None without one."""
    deviation = float(returns.std())
    return float(returns.mean()) / deviation if deviation > 0.0 else None


@dataclass(frozen=True)
class _Market:
    field: RiskField
    choices: AnyArray  # (K, 3) of the team


def evaluate_risk(run_dir: Path, dataset: Dataset, splits: Sequence[Split], seed: int = 0, tours: int = 16,
                  samples: int = 2000) -> dict[str, Any]:
    """The table of all rules over `splits`: {rules: {name: RuleScore}, choice, opportunities, days}.

    The M-RMS of `run_dir`, sizes from its smallest allowed one on; `dataset.train` is what the fixed rules choose
    on.
    """
    team = load_team(run_dir / "mrms" / "team")
    net, config = team.module.net, RiskEnvConfig(**team.spec["env"])
    assert isinstance(net, RiskNet)
    spec, regime = instrument(team.spec["instrument"]), load_regime(run_dir)
    train = RiskField(dataset.train.market(), spec, config, dataset.train.start, dataset.train.stop, seed,
                      TRAINING_TOURS)
    choice = choose_fixed(train)
    markets = []
    for split in splits:
        table = split.market()
        field = RiskField(table, spec, config, split.start, split.stop, seed + 1, tours)
        vectors = regime_columns(regime, table, mirror=False)[0]
        spots = field.opportunities
        markets.append(_Market(field, team_choices(net, table, vectors, spots.rows, spots.sides)))
    plays = {TEAM: [play_rule(m.field, team_rule(m.choices)) for m in markets]}
    for name, rule in fixed_rules(choice, seed, net.config.min_contracts).items():
        plays[name] = [play_rule(m.field, rule) for m in markets]
    plays |= _parts_of_the_team(markets, choice)
    scores = compare(plays, [m.field for m in markets], tours, samples, seed)
    return {"rules": {name: asdict(score) for name, score in scores.items()}, "choice": asdict(choice),
            "opportunities": sum(len(m.field.opportunities) for m in markets), "tours": tours,
            "choices": _histograms(np.concatenate([m.choices for m in markets]))}


def _parts_of_the_team(markets: list[_Market], choice: FixedChoice) -> dict[str, list[Play]]:
    """The team's sizes with the best fixed pair, and its brackets with one contract: where its worth lies."""
    def sizes_only(m: _Market) -> Rule:
        pair = np.tile(choice.pair, (len(m.choices), 1))
        return team_rule(np.column_stack((m.choices[:, 0], pair)))

    def brackets_only(m: _Market) -> Rule:
        return team_rule(np.column_stack((np.ones(len(m.choices), np.int64), m.choices[:, 1:])))

    return {f"{TEAM} sizes, best pair of training": [play_rule(m.field, sizes_only(m)) for m in markets],
            f"{TEAM} brackets, 1 contract": [play_rule(m.field, brackets_only(m)) for m in markets]}


def _histograms(choices: AnyArray) -> dict[str, list[float]]:
    counts = zip(("size", "stop", "target"), (SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES), strict=True)
    return {name: (np.bincount(choices[:, a], minlength=n) / len(choices)).round(3).tolist()
            for a, (name, n) in enumerate(counts)}


def compare(plays: dict[str, list[Play]], fields: list[RiskField], tours: int, samples: int,
            seed: int) -> dict[str, RuleScore]:
    """Scores of every rule, and the interval of the M-RMS's Sortino ratio less the rule's."""
    sums = {name: np.concatenate([_day_sums(play, field) for play, field in zip(many, fields, strict=True)])
            for name, many in plays.items()}
    drawn = _resampled_ratios(sums, samples, seed)
    own = _join(plays[TEAM], "returns")
    scores = {}
    for name, many in plays.items():
        score = _score(many, fields, sums[name][:, 0] / (tours * fields[0].config.initial_equity))
        if name != TEAM:
            low, high = np.quantile(drawn[TEAM] - drawn[name], (0.025, 0.975))
            score = RuleScore(**{**asdict(score), "low": float(low), "high": float(high),
                                 "difference": (sortino(own) or 0.0) - (score.sortino or 0.0)})
        scores[name] = score
    return scores


def _join(plays: list[Play], name: str) -> AnyArray:
    return np.concatenate([getattr(play, name) for play in plays])


def _day_sums(play: Play, field: RiskField) -> FloatArray:
    """(days, 4): profit, return, squared loss and number of the opportunities, by the day of the exit."""
    day = np.asarray(field.table.day)[play.exits].astype(np.int64)
    days = np.unique(np.asarray(field.table.day))
    at = np.searchsorted(days, day)
    columns = (play.profits, play.returns, np.minimum(play.returns, 0.0) ** 2, np.ones(day.size))
    sums = np.stack([np.bincount(at, column, minlength=days.size) for column in columns], axis=1)
    rows = field.opportunities.rows
    first, last = np.searchsorted(days, np.asarray(field.table.day)[[rows.min(), rows.max()]])
    return np.asarray(sums[first: last + 3], np.float64)  # the last exit may lie on the other side of a weekend


def _resampled_ratios(sums: dict[str, FloatArray], samples: int, seed: int) -> dict[str, FloatArray]:
    """(samples,) Sortino ratios of each rule on the same resampled days; 0 where nothing is lost."""
    n = min(len(rows) for rows in sums.values())
    weights = np.zeros((samples, n), np.float32)
    order = np.empty(n, np.int64)
    for sample in range(samples):
        bootstrap_indices(n, 1.0 / MEAN_BLOCK_DAYS, np.uint64(seed), sample, order)
        weights[sample] = np.bincount(order, minlength=n)
    ratios = {}
    for name, rows in sums.items():
        total, loss, count = (weights @ rows[:n, column] for column in (1, 2, 3))
        ratios[name] = np.divide(total, np.sqrt(loss * count), out=np.zeros(samples), where=loss > 0.0)
    return ratios


def _score(plays: list[Play], fields: list[RiskField], daily: FloatArray) -> RuleScore:
    returns, profits, contracts = (_join(plays, name) for name in ("returns", "profits", "contracts"))
    falls = np.array([fall for play, field in zip(plays, fields, strict=True) for fall in _drawdowns(play, field)])
    took, limited = contracts > 0.0, _join(plays, "limits") != 0
    annual = DAYS_PER_YEAR ** 0.5
    by_day = [None if ratio is None else ratio * annual for ratio in (sortino(daily), sharpe(daily))]
    return RuleScore(
        sortino=sortino(returns), sharpe=sharpe(returns), sortino_day=by_day[0], sharpe_day=by_day[1],
        net=float(profits.mean()), drawdown=float(falls.max()), mean_drawdown=float(falls.mean()),
        win_rate=float((profits[took] > 0.0).mean()) if took.any() else None,
        size=float(contracts[took].mean()) if took.any() else None, traded=float(took.mean()),
        limited=float(limited.mean()), refused=float((limited & ~took).mean()))


def _drawdowns(play: Play, field: RiskField) -> list[float]:
    """Largest fall from a peak of each account, by trades."""
    starts = np.flatnonzero(field.opportunities.firsts)
    initial = field.config.initial_equity
    return [max_drawdown(np.concatenate(([initial], part)))[0] for part in np.split(play.equity, starts[1:])]

"""Feature selection on the training split: correlation, importance under purged cross-validation, PCA.

    correlated twins go -> importance of the rest beside random probes -> the best are kept -> PCA of those

Nothing after `train_end` is read, and no label reaches over it. Sources: purging and embargo, Lopez de Prado,
Advances in Financial Machine Learning (2018), ch. 7; permutation importance on held-out folds, ch. 8 (MDA);
random probes as the bar that importance must clear, Kursa & Rudnicki (2010).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingRegressor

from algospace.config import FrozenConfig
from algospace.errors import ConfigError, InputError
from algospace.features.columns import BAR_COLUMNS
from algospace.features.matrix_schema import column_rule
from algospace.features.table import FeatureTable
from algospace.files import write_json
from algospace.seeding import stream_key
from algospace.types import AnyArray, FloatArray, IntArray

_TREES, _LEAVES, _LEARNING_RATE, _MIN_LEAF = 60, 12, 0.06, 200
_REPEATS = 2  # permutations of a column per fold
_MIN_FOLD = 200
_LATEST_START = 0.2  # share of the split within which a column must begin
_PROBE = "probe_"
_NEVER = frozenset({*BAR_COLUMNS, "synergy_type"})  # price levels and bookkeeping are not features


class SelectionConfig(FrozenConfig):
    """horizon_bars: the label is the log return of that many base bars, in units of volatility.

    max_correlation: of two columns whose |Spearman correlation| is above it one goes. folds, embargo_bars: of the
    cross-validation. keep: at most so many columns (None: all that beat every probe). probes: columns of noise.
    explained: share of variance that the principal components hold. max_rows: evenly spaced rows that are used.
    """

    horizon_bars: int = Field(12, ge=1)
    max_correlation: float = Field(0.95, gt=0, le=1)
    folds: int = Field(5, ge=2, le=20)
    embargo_bars: int = Field(288, ge=0)
    keep: int | None = Field(None, ge=1)
    probes: int = Field(5, ge=1, le=50)
    explained: float = Field(0.95, gt=0, le=1)
    max_rows: int = Field(40_000, ge=1000)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Importance:
    """Fall of the rank correlation between forecast and outcome when a column is shuffled: mean over folds, and
    its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Selection:
    """What was kept and why the rest was not.

    kept: by falling importance. dropped: column -> reason. importance: of every column that was tried; probes
    are there too. rank_correlation: of forecast and outcome on the held-out folds, (folds,). centre, scale,
    components: PCA of the kept columns, components (k, kept), as fitted; train_end_ns: nothing later was read.
    """

    symbol: str
    features: str
    train_end_ns: int
    rows: int
    kept: list[str]
    dropped: dict[str, str]
    importance: dict[str, Importance]
    rank_correlation: list[float]
    centre: list[float]
    scale: list[float]
    components: list[list[float]]
    explained: list[float]
    config: dict[str, Any]

    def save(self, path: Path | str) -> None:
        """As JSON, whole or not at all."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: Path | str) -> Selection:
        """What `save` wrote; InputError otherwise."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            values["importance"] = {name: Importance(**item) for name, item in values["importance"].items()}
            return Selection(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(path, "not a feature selection", "write one with `algospace select`") from None

    def transform(self, table: FeatureTable) -> FloatArray:
        """(n, k) principal components of any rows, by the statistics of the training split; NaN where a column is.

        ConfigError if a column is absent or the table's configuration is another one.
        """
        if table.config_digest != self.features:
            raise ConfigError(f"the selection was fitted on features {self.features[:12]}, the table has "
                              f"{table.config_digest[:12]}; build it with the same configuration")
        values = np.stack([_scaled(table, name) for name in self.kept], axis=1)
        standard = (values - np.array(self.centre)) / np.array(self.scale)
        return np.asarray(standard @ np.array(self.components).T, np.float64)


def select_features(table: FeatureTable, train_end_ns: int, config: SelectionConfig | None = None) -> Selection:
    """Select base columns of `table` by its rows that closed by `train_end_ns`.

    ConfigError where the split is too short, nothing varies, or no column beats the probes.
    """
    config = config or SelectionConfig()
    rows, outcome = _training_rows(table, train_end_ns, config)
    names, values, dropped = _candidates(table, rows)
    names, values = _without_twins(names, values, config.max_correlation, dropped)
    scores, rank_correlation = _importance(rows, names, values, outcome, config)
    kept = _best(names, scores, config, dropped)
    held = values[:, [names.index(name) for name in kept]]
    centre, scale, components, explained = _principal_components(held, config.explained)
    return Selection(table.symbol, table.config_digest, int(train_end_ns), len(rows), kept, dropped, scores,
                     rank_correlation, centre.tolist(), scale.tolist(), components.tolist(), explained.tolist(),
                     config.model_dump(mode="json"))


def purged_folds(rows: IntArray, folds: int, horizon: int, embargo: int) -> Iterator[tuple[AnyArray, AnyArray]]:
    """(train, test) places into `rows` (sorted row numbers) of `folds` contiguous test parts.

    A label of row t covers (t, t + horizon]. A row trains only if its label ends by the test part's first row or
    begins at least `embargo` rows after the end of the test part's last label.
    """
    for part in np.array_split(np.arange(rows.size), folds):
        first, last = rows[part[0]], rows[part[-1]] + horizon
        train = np.flatnonzero((rows + horizon <= first) | (rows >= last + embargo))
        yield train, part


def _training_rows(table: FeatureTable, train_end_ns: int, config: SelectionConfig) -> tuple[IntArray, FloatArray]:
    """(rows, their outcomes): bars with trades, complete columns, and labels that end within the split."""
    stop = int(np.searchsorted(table.ts_close, train_end_ns, side="right"))
    close, volatility = np.log(table.base["close"][:stop]), table.base["volatility_60"][:stop]
    horizon = config.horizon_bars
    label = np.full(stop, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        label[:max(stop - horizon, 0)] = close[horizon:] - close[:-horizon] if stop > horizon else np.nan
        label /= volatility * np.sqrt(horizon)
    usable = np.isfinite(label) & ~table.filled[:stop]
    usable[:_warm_up(table, stop)] = False
    rows = np.flatnonzero(usable)
    if rows.size < config.folds * _MIN_FOLD:
        raise ConfigError(f"{rows.size} complete rows before the end of training, at least "
                          f"{config.folds * _MIN_FOLD} needed for {config.folds} folds; give more history, a "
                          "later --train-end or fewer folds")
    if rows.size > config.max_rows:
        rows = rows[np.linspace(0, rows.size - 1, config.max_rows).astype(np.int64)]
    return rows, label[rows]


def _warm_up(table: FeatureTable, stop: int) -> int:
    """First row on which every column has a value, but for those that begin late (they are dropped by name)."""
    first, latest = 0, int(_LATEST_START * stop)
    for values in table.base.values():
        finite = np.isfinite(values[:stop])
        if finite.any():
            begins = int(np.argmax(finite))
            first = max(first, begins if begins <= latest else 0)
    return first


def _scaled(table: FeatureTable, name: str, rows: Any = slice(None)) -> FloatArray:
    """A column free of the price level: levels and price differences in ATR, the rest as it is."""
    if name not in table.base:
        raise ConfigError(f"the feature table has no column '{name}'")
    values = table.base[name][rows]
    kind = _kind(name)
    if kind not in ("level", "difference"):
        return values
    atr = table.base["atr_5m"][rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((values - table.base["close"][rows] if kind == "level" else values) / atr, np.float64)


_FURTHER_KINDS = {"ha_open": "level", "ha_high": "level", "ha_low": "level", "ha_close": "level",
                  "atr_5m": "difference", "atr_30m": "difference"}  # fmt: skip


def _kind(name: str) -> str:
    try:
        return column_rule(name)[0]
    except KeyError:
        return _FURTHER_KINDS.get(name, "robust")


def _candidates(table: FeatureTable, rows: IntArray) -> tuple[list[str], FloatArray, dict[str, str]]:
    """(names, values (rows, columns), reasons): every column that varies and is complete on the rows."""
    names, columns, dropped = [], [], {}
    for name in table.base:
        if name in _NEVER:
            continue
        values = _scaled(table, name, rows)
        if not np.isfinite(values).all():
            dropped[name] = f"{int((~np.isfinite(values)).sum())} rows without a value"
        elif np.ptp(values) == 0.0:
            dropped[name] = "constant"
        else:
            names.append(name)
            columns.append(values)
    if not names:
        raise ConfigError("no feature column varies on the training split; check the table")
    return names, np.stack(columns, axis=1), dropped


def _ranks(values: FloatArray) -> FloatArray:
    """Standardised ranks per column, so that a product of two is their Spearman correlation times n."""
    ranks = np.asarray(rankdata(values, axis=0), np.float64)
    ranks -= ranks.mean(axis=0)
    return np.asarray(ranks / np.sqrt((ranks**2).sum(axis=0)), np.float64)


def _without_twins(names: list[str], values: FloatArray, limit: float, dropped: dict[str, str]
                   ) -> tuple[list[str], FloatArray]:
    """The first column of every group that says the same stays."""
    ranks = _ranks(values)
    correlation = ranks.T @ ranks
    kept: list[int] = []
    for place, name in enumerate(names):
        twin = next((k for k in kept if abs(correlation[place, k]) > limit), None)
        if twin is None:
            kept.append(place)
        else:
            dropped[name] = f"correlation {correlation[place, twin]:.3f} with {names[twin]}"
    return [names[k] for k in kept], values[:, kept]


def _importance(rows: IntArray, names: Sequence[str], values: FloatArray, outcome: FloatArray,
                config: SelectionConfig) -> tuple[dict[str, Importance], list[float]]:
    """Importance of every column and of `probes` columns of noise, over purged folds."""
    rng = np.random.default_rng(stream_key("feature selection", config.seed))
    probes = [f"{_PROBE}{k + 1}" for k in range(config.probes)]
    everything = np.concatenate([values, rng.normal(size=(len(rows), len(probes)))], axis=1)
    falls, correlations = [], []
    for train, test in purged_folds(rows, config.folds, config.horizon_bars, config.embargo_bars):
        if train.size < _MIN_FOLD:
            raise ConfigError(f"only {train.size} rows are left to train on beside a fold of {test.size}; use a "
                              "smaller horizon_bars or embargo_bars, or more history")
        forest = HistGradientBoostingRegressor(
            max_iter=_TREES, max_leaf_nodes=_LEAVES, learning_rate=_LEARNING_RATE, min_samples_leaf=_MIN_LEAF,
            early_stopping=False, random_state=stream_key("selection trees", config.seed) % 2**31)
        forest.fit(everything[train], outcome[train])
        whole, fall = _falls(forest, everything[test], outcome[test], rng)
        correlations.append(whole)
        falls.append(fall)
    mean = np.mean(falls, axis=0)
    error = np.std(falls, axis=0, ddof=1) / np.sqrt(config.folds)
    scores = {name: Importance(float(mean[k]), float(error[k])) for k, name in enumerate([*names, *probes])}
    return scores, correlations


def _falls(forest: Any, values: FloatArray, outcome: FloatArray, rng: np.random.Generator
           ) -> tuple[float, FloatArray]:
    """(rank correlation on the fold, its fall per shuffled column)."""
    whole = _rank_correlation(forest.predict(values), outcome)
    falls = np.zeros(values.shape[1])
    shuffled = values.copy()
    for k in range(values.shape[1]):
        for _ in range(_REPEATS):
            shuffled[:, k] = rng.permutation(values[:, k])
            falls[k] += (whole - _rank_correlation(forest.predict(shuffled), outcome)) / _REPEATS
        shuffled[:, k] = values[:, k]
    return whole, falls


def _rank_correlation(a: FloatArray, b: FloatArray) -> float:
    if np.ptp(a) == 0.0:
        return 0.0
    return float(_ranks(a[:, None])[:, 0] @ _ranks(b[:, None])[:, 0])


def _best(names: Sequence[str], scores: Mapping[str, Importance], config: SelectionConfig, dropped: dict[str, str]
          ) -> list[str]:
    """Columns above every probe and above zero by a standard error, best first."""
    bar = max(score.mean for name, score in scores.items() if name.startswith(_PROBE))
    kept: list[str] = []
    for name in sorted(names, key=lambda column: -scores[column].mean):
        score = scores[name]
        if score.mean <= max(bar, score.error):
            dropped[name] = f"importance {score.mean:.4f} ± {score.error:.4f} is not above noise ({bar:.4f})"
        elif config.keep is not None and len(kept) >= config.keep:
            dropped[name] = f"importance {score.mean:.4f}: below the best {config.keep}"
        else:
            kept.append(name)
    if not kept:
        raise ConfigError("no column is of more use than columns of noise: on this split nothing forecasts the "
                          f"next {config.horizon_bars} bars; try another horizon_bars, or believe it")
    return kept


def _principal_components(values: FloatArray, explained: float
                          ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(centre, scale, components (k, columns), share of variance (k,)) of standardised columns.

    A component's sign is such that its largest weight is positive.
    """
    centre, scale = values.mean(axis=0), values.std(axis=0)
    _, singular, vectors = np.linalg.svd((values - centre) / scale, full_matrices=False)
    share = singular**2 / (singular**2).sum()
    count = int(np.searchsorted(np.cumsum(share), explained - 1e-12)) + 1
    largest = np.abs(vectors).argmax(axis=1)
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
    return centre, scale, vectors[:count], share[:count]

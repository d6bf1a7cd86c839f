"""What the matrices hold: configuration, and the fitted schema that models and tables must share.

Every column has a kind (how it is scaled) and a parity (what it becomes when the market is mirrored in log price,
so that up is down): odd columns change sign, even ones stay, and bullish and bearish twins trade places. Scaling
keeps the parity, so mirroring a normalised matrix is `matrix[:, mirror] * sign`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from algospace.config import FrozenConfig
from algospace.errors import SchemaError
from algospace.types import Float32Array, FloatArray, IntArray

# level       price:            (value - close) / ATR
# difference  price difference: value / ATR
# mlmi        0..100:           (value - 50) / 50
# age         bars:             exp(-value / 10)
# ratio       around 1:         log1p(value)
# flag        as it is
# robust      (value - centre) / scale, clipped; centre and scale from the training split
KINDS = ("level", "difference", "mlmi", "age", "ratio", "flag", "robust")
ODD, EVEN = -1, 1

COLUMN_RULES: dict[str, tuple[str, int]] = {
    "mlmi_value": ("mlmi", ODD), "mlmi_signal": ("flag", ODD), "mlmi_raw": ("robust", ODD),
    "mlmi_ma": ("robust", ODD), "nwrqk_value": ("level", ODD), "nwrqk_fast": ("level", ODD),
    "nwrqk_slope": ("difference", ODD), "nwrqk_signal": ("flag", ODD), "lvn_distance": ("difference", ODD),
    "lvn_strength": ("robust", EVEN), "poc_distance": ("difference", ODD), "hour_sin": ("robust", EVEN),
    "hour_cos": ("robust", EVEN), "weekday_sin": ("robust", EVEN), "weekday_cos": ("robust", EVEN),
    "fvg_bull_active": ("flag", EVEN), "fvg_bear_active": ("flag", EVEN), "fvg_nearest_level": ("level", ODD),
    "fvg_age": ("age", EVEN), "fvg_mitigation": ("flag", ODD), "price_momentum_5": ("robust", ODD),
    "volume_ratio": ("ratio", EVEN), "return_1": ("robust", ODD), "volatility_60": ("robust", EVEN),
    "autocorr1_60": ("robust", EVEN), "logsig_1": ("robust", EVEN), "logsig_2": ("robust", ODD),
    "logsig_3": ("robust", ODD), "logsig_4": ("robust", ODD), "logsig_5": ("robust", EVEN),
    "mmd_score": ("robust", EVEN), "volatility_30": ("robust", EVEN), "volatility_ratio": ("ratio", EVEN),
    "price_acceleration": ("robust", ODD), "return_autocorr_20": ("robust", EVEN), "range_ratio": ("ratio", EVEN),
    "volume_profile_skew": ("robust", ODD),
}  # fmt: skip
_PRICE_UNITS = ("price", "price per bar")


def column_rule(name: str) -> tuple[str, int, float]:
    """(kind, parity, centre of mirroring) of a column: ours, or one of the general library (base rows only).

    KeyError for an unknown column, or one that mirroring the market turns into something else than a value of its
    own (a directional half such as `plus_di_14`).
    """
    if name in COLUMN_RULES:
        return (*COLUMN_RULES[name], 0.0)
    from algospace.features.library.registry import REGISTRY  # compiled code: only where it is asked for

    column = REGISTRY[name]
    if column.unit == "price" and column.parity == "none":
        return "level", ODD, 0.0
    sign = {"odd": ODD, "even": EVEN}[column.parity]
    return "difference" if column.unit in _PRICE_UNITS else "robust", sign, column.centre


def _is_known(name: str) -> bool:
    try:
        column_rule(name)
    except KeyError:
        return False
    return True


TWINS = {"fvg_bull_active": "fvg_bear_active", "fvg_bear_active": "fvg_bull_active"}

STRATEGIC = ("mlmi_value", "mlmi_signal", "nwrqk_value", "nwrqk_slope", "lvn_distance", "lvn_strength", "hour_sin",
             "hour_cos")
TACTICAL = ("fvg_bull_active", "fvg_bear_active", "fvg_nearest_level", "fvg_age", "fvg_mitigation",
            "price_momentum_5", "volume_ratio")
REGIME = ("logsig_1", "logsig_2", "logsig_3", "logsig_4", "logsig_5", "mmd_score", "volatility_30",
          "volatility_ratio", "price_acceleration", "return_autocorr_20", "range_ratio", "volume_profile_skew")


class MatrixConfig(FrozenConfig):
    """Columns and windows (rows) of the matrices; `clip` bounds standardised columns.

    `atr_clip` bounds columns in ATR, far out: only a market that has all but stopped (ATR near 0) meets it.
    `tactical_extra` columns come after the tactical ones. The tactical matrix takes columns of the general library
    too, if the feature configuration lists them.
    """

    strategic: tuple[str, ...] = Field(STRATEGIC, min_length=1)
    tactical: tuple[str, ...] = Field(TACTICAL, min_length=1)
    tactical_extra: tuple[str, ...] = ()
    regime: tuple[str, ...] = REGIME
    strategic_window: int = Field(48, ge=1, le=4096)
    tactical_window: int = Field(60, ge=1, le=4096)
    regime_window: int = Field(96, ge=1, le=4096)
    clip: float = Field(5.0, gt=0)
    atr_clip: float = Field(50.0, gt=0)

    @model_validator(mode="after")
    def _columns_are_known(self) -> MatrixConfig:
        for names, library in ((self.strategic, False), (self.tactical + self.tactical_extra, True),
                               (self.regime, False)):
            unknown = [name for name in names if name not in COLUMN_RULES and not (library and _is_known(name))]
            if unknown:
                raise ValueError(f"unknown column '{unknown[0]}', or one without a mirror image; known: "
                                 f"{', '.join(sorted(COLUMN_RULES))}; in the tactical matrix also library columns "
                                 "(`algospace features --list`)")
            if len(set(names)) < len(names):
                raise ValueError(f"a column is named twice in {', '.join(names)}")
            alone = [name for name in names if name in TWINS and TWINS[name] not in names]
            if alone:
                raise ValueError(f"column '{alone[0]}' needs its twin '{TWINS[alone[0]]}' in the same matrix")
        return self


@dataclass(frozen=True)
class ColumnSpec:
    """One column: kind of scaling, fitted centre and scale (0 and 1 unless robust), and its mirror image: the
    column at place `mirror` times `sign`."""

    name: str
    kind: str
    centre: float
    scale: float
    sign: int
    mirror: int


@dataclass(frozen=True)
class MatrixSpec:
    """One matrix: `window` rows of `columns`."""

    window: int
    columns: tuple[ColumnSpec, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(column.name for column in self.columns)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.columns)

    @property
    def kinds(self) -> IntArray:
        """Codes of the columns' kinds: places in `KINDS`."""
        return np.array([KINDS.index(column.kind) for column in self.columns], np.int64)

    @property
    def centres(self) -> FloatArray:
        return np.array([column.centre for column in self.columns], np.float64)

    @property
    def scales(self) -> FloatArray:
        return np.array([column.scale for column in self.columns], np.float64)

    @property
    def mirror(self) -> IntArray:
        """Permutation of the columns under mirroring: mirrored = matrix[..., mirror] * sign."""
        return np.array([column.mirror for column in self.columns], np.int64)

    @property
    def sign(self) -> Float32Array:
        """Sign of each column under mirroring."""
        return np.array([column.sign for column in self.columns], np.float32)


@dataclass(frozen=True)
class MatrixSchema:
    """Everything needed to turn feature rows into a model's inputs; part of every table and bundle.

    `features` is the digest of the feature configuration: equal names computed with other settings are other
    columns.
    """

    strategic: MatrixSpec
    tactical: MatrixSpec
    regime: MatrixSpec
    clip: float
    atr_clip: float
    features: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; `from_dict` gives the same schema back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> MatrixSchema:
        """SchemaError if a key is missing or unknown or a kind is not one of ours."""
        try:
            matrices = {name: _matrix_from(values[name]) for name in ("strategic", "tactical", "regime")}
            schema = MatrixSchema(**{**values, **matrices})
        except (KeyError, TypeError) as error:
            raise SchemaError(f"not a matrix schema ({error}); build the table or bundle again") from None
        kinds = {column.kind for matrix in matrices.values() for column in matrix.columns}
        if not kinds <= set(KINDS):
            raise SchemaError(f"matrix schema with unknown kinds {sorted(kinds - set(KINDS))}; update AlgoSpace")
        return schema

    def digest(self) -> str:
        """SHA-256 (hex) of the schema: a model refuses a table with another one."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def require(self, other: MatrixSchema, what: str) -> None:
        """SchemaError unless `other`, the schema of `what`, equals this one; names the first difference."""
        if self.digest() == other.digest():
            return
        raise SchemaError(f"{what}: schema {other.digest()[:12]} is not the expected {self.digest()[:12]} "
                          f"({_first_difference(self, other)}); build it again with the model's schema")


def _matrix_from(values: Mapping[str, Any]) -> MatrixSpec:
    return MatrixSpec(int(values["window"]), tuple(ColumnSpec(**column) for column in values["columns"]))


def _first_difference(expected: MatrixSchema, found: MatrixSchema) -> str:
    for name in ("strategic", "tactical", "regime"):
        ours, theirs = getattr(expected, name), getattr(found, name)
        if ours.names != theirs.names:
            return f"{name} columns {', '.join(theirs.names)} instead of {', '.join(ours.names)}"
        if ours.window != theirs.window:
            return f"{name} window {theirs.window} instead of {ours.window}"
        for a, b in zip(ours.columns, theirs.columns, strict=True):
            if a != b:
                return f"scaling of {name} column {a.name}"
    return "clipping or feature configuration"


def column_specs(names: tuple[str, ...], statistics: Mapping[str, tuple[float, float]]) -> tuple[ColumnSpec, ...]:
    """Specs of one matrix; `statistics` holds (centre, scale) of its robust columns."""
    specs = []
    for place, name in enumerate(names):
        kind, sign, _ = column_rule(name)
        centre, scale = statistics.get(name, (0.0, 1.0))
        mirror = names.index(TWINS[name]) if name in TWINS else place
        specs.append(ColumnSpec(name, kind, centre, scale, sign, mirror))
    return tuple(specs)

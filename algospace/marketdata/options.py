"""What a caller may say about a source; everything left out is guessed, and every guess is reported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from algospace.config import FrozenConfig
from algospace.errors import ConfigError

ROLES = ("time", "date", "clock", "open", "high", "low", "close", "volume", "contract")


def known_zone(zone: str | None) -> str | None:
    """The zone; ValueError if it is not in the IANA database."""
    if zone is not None:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not an IANA time zone such as America/Chicago") from None
    return zone


class ImportOptions(FrozenConfig):
    """Options of an import.

    format: file format (`tradestation` is a CSV with that vendor's conventions); zone: IANA zone of times without
    one; columns: role -> column name, roles as in ROLES (`clock` is the time of day beside a `date`);
    dates: which comes first in 05/06/2020; stamp: whether a bar's time is its start or its end;
    width_s: bar width in seconds; contracts: roll table with contract, first and last time;
    front: the rule that picks one contract a day where a file holds several at once (`rolls`); roll_days: business
    days before expiry (`expiry`; 5 if left out); expiries: CSV of contract, expiry for it; roll_dates: CSV of
    contract, first_ts_utc (`dates`); open_interest: CSV of date, contract, open_interest, where the file has no
    such column;
    max_bad_fraction: share of rows that may break a rule (0.001 = 0.1 %).
    """

    format: Literal["auto", "csv", "parquet", "tradestation"] = "auto"
    zone: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    dates: Literal["auto", "day-first", "month-first"] = "auto"
    stamp: Literal["auto", "open", "close"] = "auto"
    width_s: int | None = Field(default=None, gt=0)
    contracts: Path | None = None
    front: Literal["none", "volume", "open_interest", "expiry", "dates"] = "none"
    roll_days: int | None = Field(default=None, ge=0, le=60)
    expiries: Path | None = None
    roll_dates: Path | None = None
    open_interest: Path | None = None
    max_bad_fraction: float = Field(default=0.001, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _options_fit_the_rule(self) -> ImportOptions:
        rules = {"roll_days": "expiry", "expiries": "expiry", "roll_dates": "dates",
                 "open_interest": "open_interest"}
        for name, rule in rules.items():
            if getattr(self, name) is not None and self.front != rule:
                raise ValueError(f"{name} is read with front {rule} only")
        if self.front == "dates" and self.roll_dates is None:
            raise ValueError("front dates needs roll_dates, a CSV of contract, first_ts_utc")
        return self

    _known_zone = field_validator("zone")(known_zone)

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(columns) - set(ROLES))
        if unknown:
            raise ValueError(f"unknown column role {', '.join(unknown)}; roles: {', '.join(ROLES)}")
        return columns


def parse_columns(texts: Iterable[str]) -> dict[str, str]:
    """`role=name` pairs, several texts, each possibly with commas, into a mapping."""
    columns: dict[str, str] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        role, separator, name = pair.partition("=")
        if not separator or not role.strip() or not name.strip():
            raise ConfigError(f"--columns '{pair}': expected role=column, for example close=Last")
        columns[role.strip()] = name.strip()
    return columns

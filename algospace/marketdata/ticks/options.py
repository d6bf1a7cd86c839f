"""What a caller may say about a source of ticks or quotes; the rest is guessed, and every guess is reported."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from algospace.config import FrozenConfig
from algospace.marketdata.options import known_zone
from algospace.types import MINUTE_NS, SECOND_NS

ROLES = ("ts", "date", "clock", "ts_recv", "price", "size", "bid", "ask", "bid_size", "ask_size", "aggressor",
         "buyer_is_maker", "symbol", "condition", "action", "sequence", "trade_id", "flag")
_ALIASES = {"side": "aggressor", "time": "ts", "quantity": "size", "contract": "symbol"}


class SourceOptions(FrozenConfig):
    """Options that imports of ticks and of quotes share.

    format: file format; zone: IANA zone of times without one; columns: role -> column name, roles as in ROLES
    (`clock` is the time of day beside a `date`); dates: which comes first in 05/06/2020;
    symbols: which symbols to keep; empty: the instrument's outright if there is one choice;
    clock: which time stamps the rows, the exchange's (`event`) or the receiver's (`receive`);
    clock_offset_ns: how far the receive clock is known to be ahead of the exchange's (negative: behind), as the
    trades of the same venue show it (`report.clock.offset_ns`); subtracted from receive times on reading;
    max_disorder_ns: how much older than the last accepted row a row may be;
    future_jump_ns: a step ahead from which on rows that come back prove the step wrong;
    now_ns: rows stamped after it are from the future (a clock passed in, never read here);
    max_bad_fraction: share of rows that may break a rule (0.001 = 0.1 %).
    """

    format: Literal["auto", "csv", "parquet"] = "auto"
    zone: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    dates: Literal["auto", "day-first", "month-first"] = "auto"
    symbols: tuple[str, ...] = ()
    clock: Literal["event", "receive"] = "event"
    clock_offset_ns: int = 0
    max_disorder_ns: int = Field(default=0, ge=0)
    future_jump_ns: int = Field(default=MINUTE_NS, gt=0)
    now_ns: int | None = None
    max_bad_fraction: float = Field(default=0.001, ge=0.0, le=1.0)

    _known_zone = field_validator("zone")(known_zone)

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        columns = {_ALIASES.get(role, role): name for role, name in columns.items()}
        unknown = sorted(set(columns) - set(ROLES))
        if unknown:
            raise ValueError(f"unknown column role {', '.join(unknown)}; roles: {', '.join(ROLES)}")
        return columns


class TickImportOptions(SourceOptions):
    """Options of an import of trades.

    exclude_conditions: trade conditions to leave out, by name (`average_price`) or by the file's own code; None:
    the default of the code system (`conditions.DEFAULT_EXCLUDED`: trades whose price is not the market's at the
    time of the print); empty: none; include_conditions: if given, keep only trades with one of these;
    condition_codes: code system of the condition column (`mask`: hexadecimal AlgoSeek/LEAN bit mask, `letters`:
    sale condition letters of the consolidated tapes, `words`: names such as MARKET);
    drop_flagged: leave out the rows that the vendor marks as suspicious (they are counted in any case);
    correct_clock: subtract the estimated clock offset (that is left after clock_offset_ns) from ts_recv;
    future_tolerance_ns: how much later than its receipt (after the clock offset) a trade may claim to be.
    """

    exclude_conditions: tuple[str, ...] | None = None
    include_conditions: tuple[str, ...] = ()
    condition_codes: Literal["auto", "mask", "letters", "words"] = "auto"
    drop_flagged: bool = False
    correct_clock: bool = False
    future_tolerance_ns: int = Field(default=SECOND_NS, ge=0)


class QuoteImportOptions(SourceOptions):
    """Options of an import of best bids and asks. Quotes without an event time are stamped by their receipt, moved
    by `clock_offset_ns`."""

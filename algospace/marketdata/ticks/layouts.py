"""Which column of a file of trades or quotes plays which role: the caller's word first, then well-known names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from algospace.errors import InputError
from algospace.marketdata.columns import FLAG_NAMES, given_column, guess_column

KNOWN_NAMES: dict[str, tuple[str, ...]] = {
    "ts": ("ts_event", "ts_utc", "exch_ns", "exch_us", "exch_ms", "exch_ts", "exchange_time", "event_time",
           "transact_time", "trade_time", "timestamp_utc", "timestamp", "datetime", "date_time", "ts_ny",
           "ts_chicago", "ts_et", "ts_ct", "ts", "time"),
    "date": ("date", "day", "<date>", "trade date"),
    "clock": ("time", "time of day", "<time>", "trade time"),
    "ts_recv": ("ts_recv", "local_ns", "local_us", "local_ms", "local_timestamp", "recv_ns", "recv_time",
                "receive_time", "ts_receive", "received_at"),
    "price": ("price", "px", "trade_price", "last_price", "last", "<last>", "p"),
    "size": ("size", "qty", "quantity", "volume", "amount", "trade_size", "last_size", "<vol>", "vol"),
    "bid": ("bid", "bid_px", "bid_px_00", "bid_price", "best_bid", "best_bid_price", "bidprice"),
    "ask": ("ask", "ask_px", "ask_px_00", "ask_price", "best_ask", "best_ask_price", "askprice", "offer"),
    "bid_size": ("bid_size", "bid_qty", "bid_sz", "bid_sz_00", "best_bid_qty", "bidsize", "bid_volume"),
    "ask_size": ("ask_size", "ask_qty", "ask_sz", "ask_sz_00", "best_ask_qty", "asksize", "ask_volume"),
    "aggressor": ("aggressor", "aggressor_side", "side", "taker_side"),
    "buyer_is_maker": ("buyer_is_maker", "is_buyer_maker", "isbuyermaker"),
    "symbol": ("symbol", "raw_symbol", "contract", "ticker", "instrument", "instrument_id"),
    "condition": ("cond", "condition", "conditions", "sale_condition", "trade_condition"),
    "action": ("action",),
    "sequence": ("sequence", "seq", "seq_num", "sequence_number"),
    "trade_id": ("trade_id", "agg_trade_id", "tradeid"),
    "flag": FLAG_NAMES,
}
_TRADE_ROLES = ("ts_recv", "price", "size", "bid", "ask", "aggressor", "buyer_is_maker", "symbol", "condition",
                "action", "sequence", "trade_id", "flag")
_QUOTE_ROLES = ("ts_recv", "bid", "ask", "bid_size", "ask_size", "symbol", "sequence", "flag")
_DATABENTO = "Databento"
_OHLC = (("open", "o", "<open>"), ("high", "h", "<high>"), ("low", "l", "<low>"), ("close", "c", "<close>"))


@dataclass(frozen=True)
class Layout:
    """name: what the file looks like; roles: role -> column; notes: what was guessed."""

    name: str
    roles: dict[str, str]
    notes: list[str]

    @property
    def is_databento(self) -> bool:
        """Whether prices may be whole numbers of billionths."""
        return self.name.startswith(_DATABENTO)


def resolve_layout(path: Path, names: Sequence[str], wanted: Mapping[str, str], quotes: bool = False) -> Layout:
    """Roles of a file's columns. InputError names the roles that no column plays."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.strip().strip('"').lower(), name)
    roles = {role: given_column(path, role, column, names) for role, column in wanted.items()}
    guessed: dict[str, str] = {}
    for role in _QUOTE_ROLES if quotes else _TRADE_ROLES:
        guess_column(KNOWN_NAMES, role, by_lower, roles, guessed)
    _guess_time(by_lower, roles, guessed)
    if "buyer_is_maker" in roles:  # Binance's names, too plain to be guessed elsewhere
        for role, known in (("condition", "type"), ("trade_id", "id")):
            if role not in roles and known in by_lower and by_lower[known] not in roles.values():
                roles[role] = guessed[role] = by_lower[known]
    _check_complete(path, names, roles, ("bid", "ask") if quotes else ("price",))
    layout = _name(by_lower, roles, quotes)
    notes = [f"layout: {layout}"]
    if guessed:
        notes.append("columns: " + ", ".join(f"{role} = {column}" for role, column in guessed.items()))
    ignored = [name for name in names if name not in roles.values()]
    if ignored:
        notes.append("ignored columns: " + ", ".join(ignored))
    return Layout(layout, roles, notes)


def _guess_time(by_lower: Mapping[str, str], roles: dict[str, str], guessed: dict[str, str]) -> None:
    """One column with the full time, or a date beside a time of day."""
    if "ts" in roles:
        return
    if "date" in roles or any(name in by_lower for name in KNOWN_NAMES["date"]):
        for role in ("date", "clock"):
            guess_column(KNOWN_NAMES, role, by_lower, roles, guessed)
        if "date" in roles and "clock" in roles:
            return
        for role in guessed.keys() & {"date", "clock"}:
            del roles[role], guessed[role]
    guess_column(KNOWN_NAMES, "ts", by_lower, roles, guessed)
    if "ts" not in roles and "ts_recv" not in roles:
        guess_column(KNOWN_NAMES, "date", by_lower, roles, guessed)
        if "date" in roles:
            roles["ts"] = roles.pop("date")
            guessed["ts"] = guessed.pop("date", roles["ts"])


def _check_complete(path: Path, names: Sequence[str], roles: Mapping[str, str], needed: Sequence[str]) -> None:
    missing = [role for role in needed if role not in roles]
    timed = "ts" in roles or "ts_recv" in roles or ("date" in roles and "clock" in roles)
    if not timed:
        missing.insert(0, "ts")
    if not missing:
        return
    fix = "name them with --columns " + ",".join(f"{role}=…" for role in missing)
    if names and all(_looks_like_value(name) for name in names):
        fix = "the first line must name the columns"
    raise InputError(path, f"missing columns: {', '.join(missing)} (found: {', '.join(names) or 'none'})", fix)


def _looks_like_value(name: str) -> bool:
    return any(c.isdigit() for c in name) and not any(c.isalpha() and c not in "TZ" for c in name)


def _name(by_lower: Mapping[str, str], roles: Mapping[str, str], quotes: bool) -> str:
    if "ts_event" in by_lower and ("action" in by_lower or "rtype" in by_lower):
        return f"{_DATABENTO} {'quotes' if quotes else 'trades'}"
    if quotes:
        return "quotes"
    if "buyer_is_maker" in roles:
        return "Binance trades"
    if "condition" in roles:
        return "TAQ-like trades"
    return "generic trades"


def names_of_trades(names: Sequence[str]) -> bool:
    """Whether these columns are those of trades and not of bars."""
    lower = _lower(names)
    bars = all(any(name in lower for name in known) for known in _OHLC)
    return not bars and any(name in lower for name in KNOWN_NAMES["price"])


def names_of_quotes(names: Sequence[str]) -> bool:
    """Whether these columns are those of best bids and asks, without trades or bars."""
    lower = _lower(names)
    two_sided = all(any(name in lower for name in KNOWN_NAMES[side]) for side in ("bid", "ask"))
    return two_sided and not any(name in lower for name in (*KNOWN_NAMES["price"], "close", "c", "<close>"))


def _lower(names: Sequence[str]) -> set[str]:
    return {name.strip().strip('"').lower() for name in names}

"""Which column of a file plays which role: the caller's word first, then well-known names, each guess reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from algospace.errors import InputError
from algospace.marketdata.schema import PRICES

KNOWN_NAMES: dict[str, tuple[str, ...]] = {
    "time": ("ts_utc", "ts_open", "timestamp_utc", "datetime_utc", "time_utc", "ts_event", "ts", "timestamp",
             "datetime", "date_time", "date time", "open_time", "open time", "gmt time", "time", "date",
             "ts_local"),
    "date": ("date", "day", "<date>", "trade date"),
    "clock": ("time", "time of day", "<time>", "hour", "trade time"),
    "open": ("open", "o", "<open>", "open_price", "first"),
    "high": ("high", "h", "<high>", "high_price", "max"),
    "low": ("low", "l", "<low>", "low_price", "min"),
    "close": ("close", "c", "<close>", "last", "close_price"),
    "volume": ("volume", "v", "vol", "<vol>", "<volume>", "total volume", "qty", "size"),
    "contract": ("contract", "contract_id", "symbol", "raw_symbol", "expiry"),
}
# a column that the vendor uses to mark doubtful rows; reported, never acted upon
FLAG_NAMES = ("suspect", "suspicious")


def resolve_columns(path: Path, names: Sequence[str],
                    wanted: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(role -> column, what was guessed). InputError names the roles that no column plays."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.strip().strip('"').lower(), name)
    roles = {role: given_column(path, role, column, names) for role, column in wanted.items()}
    guessed: dict[str, str] = {}
    for role in (*PRICES, "volume", "contract"):
        guess_column(KNOWN_NAMES, role, by_lower, roles, guessed)
    _guess_time(by_lower, roles, guessed)
    _check_complete(path, names, roles)
    notes = []
    if guessed:
        notes.append("columns: " + ", ".join(f"{role} = {column}" for role, column in guessed.items()))
    if "volume" not in roles:
        notes.append("volume: no such column, so unknown")
    ignored = [name for name in names if name not in roles.values() and name.lower() not in FLAG_NAMES]
    if ignored:
        notes.append("ignored columns: " + ", ".join(ignored))
    return roles, notes


def given_column(path: Path, role: str, column: str, names: Sequence[str]) -> str:
    """The column that the caller named for a role; InputError if there is none of that name."""
    if column not in names:
        raise InputError(path, f"no column '{column}' for {role} (found: {', '.join(names)})",
                         f"correct --columns {role}=…")
    return column


def guess_column(known_names: Mapping[str, Sequence[str]], role: str, by_lower: Mapping[str, str],
                 roles: dict[str, str], guessed: dict[str, str]) -> None:
    """Give `role` the first of its known names that the file has and no other role took."""
    if role in roles:
        return
    for known in known_names[role]:
        if known in by_lower and by_lower[known] not in roles.values():
            roles[role] = guessed[role] = by_lower[known]
            return


def _guess_time(by_lower: Mapping[str, str], roles: dict[str, str], guessed: dict[str, str]) -> None:
    """One column with the full time, or a date column beside a time-of-day column."""
    if "time" in roles:
        return
    pair = {role: next((by_lower[known] for known in KNOWN_NAMES[role] if known in by_lower), None)
            for role in ("date", "clock")}
    for role, column in pair.items():
        if role in roles:
            pair[role] = roles[role]
        elif column is not None and pair["date"] and pair["clock"]:
            guessed[role] = column
    if pair["date"] and pair["clock"]:
        roles.update({role: column for role, column in pair.items() if column})
    else:
        guess_column(KNOWN_NAMES, "time", by_lower, roles, guessed)


def _check_complete(path: Path, names: Sequence[str], roles: Mapping[str, str]) -> None:
    missing = [role for role in PRICES if role not in roles]
    if "time" not in roles and not ("date" in roles and "clock" in roles):
        missing.insert(0, "time")
    if not missing:
        return
    fix = "name them with --columns " + ",".join(f"{role}=…" for role in missing)
    if "price" in (name.lower() for name in names):
        fix = "it holds trades: say --kind ticks"
    elif names and all(_looks_like_value(name) for name in names):
        fix = "the first line must name the columns"
    raise InputError(path, f"missing columns: {', '.join(missing)} (found: {', '.join(names) or 'none'})", fix)


def _looks_like_value(name: str) -> bool:
    return any(c.isdigit() for c in name) and not any(c.isalpha() and c not in "TZ" for c in name)

"""Which of a file's symbols is meant: the instrument's outright contract, never a spread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from algospace.errors import InputError
from algospace.instruments import Instrument
from algospace.types import IntArray

_OUTRIGHT = re.compile(r"([A-Z0-9]{1,4})([FGHJKMNQUVXZ])(\d{1,2}|\d{4})")
_CLEARLY = 0.95  # share of the outright trades that makes one contract the one meant


def is_spread(symbol: str, spec: Instrument) -> bool:
    """Whether a futures symbol joins several legs, such as NQM5-NQU5 or NQ:BF M5-U5-Z5."""
    if spec.kind != "future":
        return False
    text = symbol.upper()
    return ":" in text or len(_OUTRIGHT.findall(text)) > 1 or bool(re.search(r"[A-Z0-9]-[A-Z0-9]", text))


def is_outright(symbol: str, spec: Instrument) -> bool:
    """Whether a symbol is the instrument itself or one of its contracts (NQM5, NQ.c.0, NQ)."""
    text, root = symbol.upper(), re.escape(spec.symbol)
    forms = rf"{root}|{root}[FGHJKMNQUVXZ](\d{{1,2}}|\d{{4}})|{root}\.[CVN]\.\d+|{root}[12]!"
    return re.fullmatch(forms, text) is not None


def choose_symbols(path: Path, numbers: IntArray, names: Sequence[str], wanted: Sequence[str],
                   spec: Instrument, notes: list[str]) -> dict[str, str]:
    """symbol -> why its rows are left out ("" = kept) for one file.

    InputError lists the symbols where the choice is not clear.
    """
    counts = np.bincount(numbers[numbers >= 0], minlength=len(names))
    present = [name for name, count in zip(names, counts, strict=True) if count]
    rows = dict(zip(names, counts.tolist(), strict=True))
    if wanted:
        chosen = {name.upper() for name in wanted}
        return {name: "" if name.strip().upper() in chosen else
                ("spread_symbol" if is_spread(name, spec) else "other_symbol") for name in present}
    spreads = [name for name in present if is_spread(name, spec)]
    others = [name for name in present if name not in spreads]
    mine = [name for name in others if is_outright(name.strip(), spec)]
    kept = _pick(path, others, mine, rows, spec)
    if len(present) > 1:
        left = ", ".join(f"{name} {rows[name]}" for name in present if name != kept)
        notes.append(f"symbol: {kept} ({rows[kept]} rows; left out: {left}; --symbol sets it)")
    elif not mine:
        notes.append(f"symbol: {kept}, the only one, is taken for {spec.symbol}")
    return {name: "" if name == kept else "spread_symbol" if name in spreads else "other_symbol"
            for name in present}


def _pick(path: Path, others: Sequence[str], mine: Sequence[str], rows: dict[str, int], spec: Instrument) -> str:
    listed = ", ".join(f"{name} ({rows[name]} rows)" for name in sorted(rows, key=lambda n: -rows[n])[:12])
    if mine:
        best = max(mine, key=lambda name: rows[name])
        if rows[best] >= _CLEARLY * sum(rows[name] for name in mine):
            return best
        raise InputError(path, f"several contracts of {spec.symbol}: {listed}",
                         f"choose with --symbol, for example --symbol {best}")
    if len(others) == 1 and not (spec.kind == "future" and _OUTRIGHT.fullmatch(others[0].strip().upper())):
        return others[0]
    if not others and not rows:
        raise InputError(path, "no row names its symbol", "choose another column with --columns symbol=…")
    raise InputError(path, f"no symbol is an outright contract of {spec.symbol}: {listed}",
                     "say the right --instrument, or choose with --symbol")

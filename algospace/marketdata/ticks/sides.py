"""Who crossed the spread: vendors' words for it to +1 (buyer), -1 (seller), 0 (unknown).

Databento: side is the side that initiates the trade, Ask for a sell aggressor, Bid for a buy aggressor, None where
unspecified (its documentation of the trades schema). Binance: a trade whose buyer is the maker was started by the
seller. FIX (tag 5797, AggressorSide): 1 buy, 2 sell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algospace.marketdata.ticks.files import TradeFile, codes_of
from algospace.types import Int8Array

_WORDS = {"b": 1, "bid": 1, "buy": 1, "buyer": 1, "1": 1, "+1": 1, "1.0": 1,
          "a": -1, "ask": -1, "s": -1, "sell": -1, "seller": -1, "-1": -1, "-1.0": -1,
          "n": 0, "none": 0, "0": 0, "0.0": 0, "unknown": 0, "": 0}
_TRUE, _FALSE = ("true", "1", "t", "yes", "y", "1.0"), ("false", "0", "f", "no", "n", "0.0")


def read_aggressor(files: Sequence[TradeFile], notes: list[str], reported: dict[str, int]) -> Int8Array | None:
    """(n,) +1, -1 or 0 over all files' rows; None if no file says. Unknown words are 0 and counted."""
    if not any("aggressor" in f.columns or "buyer_is_maker" in f.columns for f in files):
        return None
    parts, strange = [], 0
    for f in files:
        role = "buyer_is_maker" if "buyer_is_maker" in f.columns else "aggressor"
        if role not in f.columns:
            parts.append(np.zeros(len(f), np.int8))
            continue
        numbers, texts = codes_of(f.columns[role])
        meaning = _meanings([text.strip().lower() for text in texts], role)
        strange += int(np.isin(numbers, [k for k, value in enumerate(meaning) if value is None]).sum())
        lookup = np.array([value or 0 for value in meaning] + [0], np.int8)
        parts.append(lookup[numbers])
        _note(f, role, texts, meaning, notes)
    if strange:
        reported["aggressor_words_unknown"] = strange
    return np.concatenate(parts)


def _meanings(texts: Sequence[str], role: str) -> list[int | None]:
    if role == "buyer_is_maker":
        return [-1 if text in _TRUE else 1 if text in _FALSE else None for text in texts]
    if "2" in texts and set(texts) <= {"0", "1", "2"}:
        return [{"0": 0, "1": 1, "2": -1}[text] for text in texts]
    return [_WORDS.get(text) for text in texts]


def _note(file: TradeFile, role: str, texts: Sequence[str], meaning: Sequence[int | None],
          notes: list[str]) -> None:
    words = {1: "buyer", -1: "seller", 0: "unknown", None: "not understood"}
    said = ", ".join(sorted(f"{text.strip()} = {words[value]}"
                            for text, value in zip(texts[:9], meaning[:9], strict=True)))
    note = f"aggressor: by column '{file.layout.roles[role]}', {said}"
    if note not in notes:
        notes.append(note)

"""Trade conditions: code systems, names, and which trades do not belong into a price series.

Left out by default are trades whose price is not the market's at the time of the print: average price, agreed
earlier or derivatively priced, reported late or out of sequence, settled in another way, and official open and
close messages that repeat a print. Trades in extended hours, sweeps, odd lots, auction prints and crosses stay.

Sources: bit mask of AlgoSeek's US equity trades as listed in LEAN's TradeConditionFlags; letters of the CTA and
UTP consolidated tape specifications (sale conditions); words of Binance's futures trade stream (field X).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algospace.errors import ConfigError
from algospace.types import AnyArray, BoolArray, IntArray

MASK_BITS = (
    "regular", "cash", "next_day", "seller", "yellow_flag", "intermarket_sweep", "opening_print", "closing_print",
    "reopening_print", "derivatively_priced", "form_t", "sold_last", "stopped", "extended_hours",
    "out_of_sequence", "split", "acquisition", "bunched", "stock_option", "distribution", "average_price", "cross",
    "price_variation", "rule_155", "official_close", "prior_reference_price", "official_open", "cap_election",
    "auto_execution", "trade_through_exempt", "undocumented", "odd_lot")
LETTERS = {
    "@": "regular", "A": "acquisition", "B": "average_price", "C": "cash", "D": "distribution",
    "E": "auto_execution", "F": "intermarket_sweep", "G": "bunched_sold", "H": "price_variation", "I": "odd_lot",
    "K": "rule_155", "L": "sold_last", "M": "official_close", "N": "next_day", "O": "opening_print",
    "P": "prior_reference_price", "Q": "official_open", "R": "seller", "S": "split", "T": "extended_hours",
    "U": "extended_hours_out_of_sequence", "V": "contingent", "W": "average_price", "X": "cross",
    "Y": "yellow_flag", "Z": "out_of_sequence", "1": "stopped", "4": "derivatively_priced", "5": "reopening_print",
    "6": "closing_print", "7": "qualified_contingent", "8": "placeholder_611", "9": "corrected_close"}
DEFAULT_EXCLUDED = (
    "average_price", "derivatively_priced", "out_of_sequence", "extended_hours_out_of_sequence", "sold_last",
    "bunched_sold", "prior_reference_price", "stock_option", "contingent", "qualified_contingent",
    "price_variation", "cash", "next_day", "seller", "official_close", "official_open", "corrected_close",
    "insurance_fund", "adl")
_MAX_CODES = 10_000  # a condition column with more distinct texts is something else


@dataclass(frozen=True)
class ConditionSystem:
    """How the codes of a column are read: `mask`, `letters` or `words`."""

    kind: str

    def names(self, code: str) -> tuple[str, ...]:
        """The conditions that a code stands for."""
        text = code.strip()
        if self.kind == "mask":
            value = int(text, 16) if text else 0
            return tuple(name for bit, name in enumerate(MASK_BITS) if value >> bit & 1)
        if self.kind == "letters":
            return tuple(LETTERS.get(letter, letter) for letter in text.upper() if letter not in " ,|")
        return (text.lower(),) if text else ()


def recognise(codes: Sequence[str], asked: str) -> ConditionSystem:
    """The code system of a column's distinct texts: a bit mask is told by codes longer than four hex digits."""
    texts = [code.strip() for code in codes if code.strip()]
    if asked != "auto":
        if asked == "mask" and not all(_is_hex(text) for text in texts):
            raise ConfigError("condition_codes=mask: the column holds codes that are no hexadecimal numbers")
        return ConditionSystem(asked)
    if texts and all(_is_hex(text) for text in texts) and any(len(text) > 4 for text in texts):
        return ConditionSystem("mask")
    if texts and all(len(text) <= 4 and not (len(text) > 1 and text.isdigit()) for text in texts):
        return ConditionSystem("letters")
    return ConditionSystem("words")


def _is_hex(text: str) -> bool:
    return len(text) <= 8 and all(c in "0123456789abcdefABCDEF" for c in text)


def too_many(codes: Sequence[str]) -> bool:
    """Whether a column is no condition column at all."""
    return len(codes) > _MAX_CODES


def judge_codes(codes: Sequence[str], system: ConditionSystem, exclude: Sequence[str] | None,
                include: Sequence[str]) -> list[str]:
    """Per distinct code the reason for which its trades are left out, or an empty text."""
    excluded = [name.lower() for name in (DEFAULT_EXCLUDED if exclude is None else exclude)]
    wanted = {name.lower() for name in include}
    reasons = []
    for code in codes:
        carried = [code.strip().lower(), *(name.lower() for name in system.names(code))]
        reason = next((f"condition:{name}" for name in excluded if name in carried), "")
        if not reason and wanted and not wanted.intersection(carried):
            reason = "condition:not_included"
        reasons.append(reason)
    return reasons


def count_conditions(codes: Sequence[str], numbers: IntArray, system: ConditionSystem) -> dict[str, int]:
    """How many trades carry each condition; a trade with several counts for each."""
    counts: dict[str, int] = {}
    for code, rows in zip(codes, np.bincount(numbers[numbers >= 0], minlength=len(codes)).tolist(), strict=True):
        for name in system.names(code) or ("none",):
            counts[name] = counts.get(name, 0) + rows
    none = int((numbers < 0).sum())
    if none:
        counts["none"] = counts.get("none", 0) + none
    return dict(sorted(((k, v) for k, v in counts.items() if v), key=lambda item: -item[1]))


def rows_with(reasons: Sequence[str], numbers: IntArray) -> dict[str, BoolArray]:
    """reason -> mask of its rows; rows without a code (number -1) have the reason of the last entry."""
    masks: dict[str, BoolArray] = {}
    lookup: AnyArray = np.array(reasons, dtype=object)
    for reason in dict.fromkeys(reasons):
        if reason:
            masks[reason] = (lookup == reason)[numbers]
    return masks

"""Which trades are not asked for: other messages, other symbols, trade conditions, the vendor's own doubts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algospace.marketdata.ticks import conditions as trade_conditions
from algospace.marketdata.ticks.draft import Draft, role_codes
from algospace.marketdata.ticks.files import TradeFile
from algospace.marketdata.ticks.options import TickImportOptions

_DOUBTED = ("1", "1.0", "true", "yes", "t", "y")


def filter_actions(files: Sequence[TradeFile], draft: Draft) -> None:
    """Keep trade messages: in order-by-order data each fill (F) repeats its trade (T)."""
    if not any("action" in f.columns for f in files):
        return
    numbers, actions = role_codes(files, "action")
    for k, action in enumerate(actions):
        if action.strip() and action.strip().upper() not in ("T", "TRADE"):
            draft.leave_out(f"action:{action.strip()}", numbers == k)


def filter_conditions(files: Sequence[TradeFile], draft: Draft, options: TickImportOptions) -> None:
    """Count conditions; leave out the excluded ones."""
    if not any("condition" in f.columns for f in files):
        return
    numbers, codes = role_codes(files, "condition")
    if trade_conditions.too_many(codes):
        draft.note(f"conditions: {len(codes)} different texts are no condition codes, so not looked at")
        return
    system = trade_conditions.recognise(codes, options.condition_codes)
    draft.conditions = trade_conditions.count_conditions(codes, numbers[~draft.filtered], system)
    reasons = trade_conditions.judge_codes([*codes, ""], system, options.exclude_conditions,
                                           options.include_conditions)
    for reason, rows in trade_conditions.rows_with(reasons, numbers).items():
        draft.leave_out(reason, rows)
    what = "left out by default" if options.exclude_conditions is None else "left out"
    dropped = [r.removeprefix("condition:") for r in draft.filters if r.startswith("condition:")]
    draft.note(f"conditions: {system.kind} codes; {what}: {', '.join(dropped) or 'none present'}")


def filter_flags(files: Sequence[TradeFile], draft: Draft, options: TickImportOptions) -> None:
    """Count the rows that the vendor marks as suspicious; leave them out if asked."""
    if not any("flag" in f.columns for f in files):
        return
    numbers, texts = role_codes(files, "flag")
    rows = np.isin(numbers, [k for k, text in enumerate(texts) if text.strip().lower() in _DOUBTED])
    draft.reported["flagged_by_vendor"] = int(rows.sum())
    if options.drop_flagged:
        draft.leave_out("flagged_by_vendor", rows)

"""Tools for trust: does a column know the future (`lookahead`), and how much past does it need (`warmup`)?"""

from algospace.trust.builders import Features, live_builder, live_twin, live_whole
from algospace.trust.cuts import Cut, choose_cuts
from algospace.trust.inspection import inspect_features
from algospace.trust.lookahead import ColumnCheck, LookaheadReport, Rows, check_live, check_lookahead
from algospace.trust.warmup import ColumnWarmup, WarmupReport, check_warmup

__all__ = [
    "ColumnCheck",
    "ColumnWarmup",
    "Cut",
    "Features",
    "LookaheadReport",
    "Rows",
    "WarmupReport",
    "check_live",
    "check_lookahead",
    "check_warmup",
    "choose_cuts",
    "inspect_features",
    "live_builder",
    "live_twin",
    "live_whole",
]

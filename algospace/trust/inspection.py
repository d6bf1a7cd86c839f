"""The whole look-ahead inspection of an instrument's features: cuts, live twin, hidden inputs."""

from __future__ import annotations

from algospace.features.own import FrameIndicator
from algospace.trust.builders import Features, live_builder, live_twin, live_whole
from algospace.trust.cuts import busiest_stretches, choose_cuts
from algospace.trust.hidden import hidden_inputs
from algospace.trust.lookahead import LookaheadReport, check_live, check_lookahead, merge
from algospace.types import MINUTE_NS, Bars

LIVE_EVENTS = 5_000
"""Source bars pushed one by one in each stretch."""


def inspect_features(
    features: Features, bars: Bars, cuts: int = 20, live_events: int = LIVE_EVENTS
) -> LookaheadReport:
    """Every column of `features` over `bars` at `cuts` cuts and the first bars, and live over three stretches."""
    notes = []
    if features.schema is None:
        note = features.fit(bars)
        notes += [note] if note else []
    config = features.config
    places = choose_cuts(bars, cuts, config.base_minutes * MINUTE_NS, config.slow_minutes * MINUTE_NS)
    report = check_lookahead(features, bars, places)
    frames = [i.name for i in features.indicators if isinstance(i, FrameIndicator)]
    if frames:
        notes.append(f"no live twin: {', '.join(frames)} (frame form)")
    twin = live_twin(features)
    found, events = check_live(live_builder(twin), live_whole(twin, bars), bars,
                               busiest_stretches(bars, live_events))
    hidden = [line for indicator in features.indicators for line in hidden_inputs(indicator)]
    return merge(report, found, events, hidden, notes)

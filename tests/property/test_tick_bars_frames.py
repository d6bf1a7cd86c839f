"""Frames are written, checked and refused in one clear line."""

import numpy as np
import pytest

from algospace.errors import ConfigError, InputError, SchemaError
from algospace.features.bar_frames import BarFrame
from algospace.features.tick_bars import BarBuilder, build_bars
from algospace.types import MINUTE_NS, SECOND_NS, Ticks

TICKS = Ticks(np.arange(10) * SECOND_NS, np.full(10, 50.0), np.full(10, np.nan))


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ("30s", BarFrame.clock(30 * SECOND_NS)),
        ("5m", BarFrame.clock(5 * MINUTE_NS)),
        ("1h", BarFrame.clock(60 * MINUTE_NS)),
        ("250ms", BarFrame.clock(SECOND_NS // 4)),
        ("tick:500", BarFrame.ticks(500)),
        ("volume:2000", BarFrame.volume(2000)),
        ("dollar:1000000", BarFrame.dollars(1e6)),
    ],
)
def test_a_frame_is_its_text(text, frame):
    assert BarFrame.parse(text) == frame
    assert frame.name == text


def test_results_are_named_as_asked():
    assert list(build_bars(TICKS, ["60s", BarFrame.clock(2 * MINUTE_NS), "tick:5e0"])) == ["60s", "2m", "tick:5e0"]


@pytest.mark.parametrize("frames", [[], ["5m", "300s"], ["5 minutes"], ["0m"], ["tick:0"], ["tick:2.5"],
                                    ["volume:x"], ["volume:inf"], ["range:4"]])  # fmt: skip
def test_impossible_frames_are_refused(frames):
    with pytest.raises(ConfigError) as caught:
        BarBuilder(frames)
    assert "\n" not in str(caught.value)


def test_volume_bars_need_sizes():
    with pytest.raises(InputError, match="size"):
        build_bars(TICKS, ["volume:5"])


def test_a_dollar_counts_the_multiplier():
    ticks = Ticks(TICKS.ts, TICKS.price, np.ones(10))
    frame = BarFrame.dollars(2000.0, multiplier=20.0)  # each tick is worth 1000
    assert build_bars(ticks, [frame])[frame.name].count.tolist() == [2] * 5


def test_a_tick_that_crosses_the_threshold_goes_in_whole():
    ticks = Ticks(np.arange(4) * SECOND_NS, np.full(4, 50.0), np.array([3.0, 25.0, 1.0, 9.0]))
    bars = build_bars(ticks, ["volume:10"])["volume:10"]
    assert bars.volume.tolist() == [28.0, 10.0]
    assert bars.ts_open.tolist() == [0, 2 * SECOND_NS]
    assert bars.ts_close.tolist() == [SECOND_NS, 3 * SECOND_NS]


def test_a_snapshot_belongs_to_its_settings():
    snapshot = BarBuilder(["5m", "tick:5"]).snapshot()
    with pytest.raises(SchemaError, match="saved for"):
        BarBuilder(["5m", "tick:6"]).restore(snapshot)
    with pytest.raises(SchemaError, match="not a snapshot"):
        BarBuilder(["5m", "tick:5"]).restore(snapshot[:50])

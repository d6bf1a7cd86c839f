"""Faults in a user's indicator file are one line with file, line and bar; a sound file gives equal columns."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from algospace.errors import UserError
from algospace.features import FeatureConfig, FeatureStream, Indicator, SourceBar, build, concatenate
from algospace.features.own import FrameIndicator, build_with_own, load_indicator, original, step_indicators
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate
from algospace.types import Bars

SYNTH = instrument("SYNTH")
LEAN = FeatureConfig(regime=False)
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "my_indicator.py"
HEAD = "import numba as nb\nimport numpy as np\nfrom algospace.features import Indicator\n"
END = "INDICATOR = Indicator('a', ('a',), lambda: np.zeros(1), update)\n"
COUNT = "def update(s, b, out):\n    s[0] += 1\n"
COMPILED = "@nb.njit\n"
CRASH = "    if s[0] > 50:\n        raise ValueError('too many')\n    out[0] = 1.0\n"


@pytest.fixture(scope="module")
def bars() -> Bars:
    return generate("stress", 5, 120, "1m").bars


def saved(tmp_path: Path, source: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(source)
    return path


def push_all(stream: FeatureStream, bars: Bars) -> None:
    """Event by event."""
    for i in range(len(bars)):
        stream.push(SourceBar(int(bars.ts_open[i]), float(bars.open[i]), float(bars.high[i]), float(bars.low[i]),
                              float(bars.close[i])))


FAULTS = {
    "raises": (HEAD + COUNT + CRASH + END, 7,
               "update at bar 50 (2000-01-03 04:15 UTC): ValueError: too many"),
    "compiled raises": (HEAD + COMPILED + COUNT + CRASH + END, 8,
                        "update at bar 50 (2000-01-03 04:15 UTC): ValueError: too many"),
    "too many columns": (HEAD + COUNT + "    out[0] = 1.0\n    out[1] = 2.0\n" + END, 7,
                         "update at bar 0 (2000-01-03 00:05 UTC): IndexError"),
    "compiled too many": (HEAD + COMPILED + COUNT + "    out[1] = 2.0\n" + END, 4,
                          "update writes beyond its 1 columns at bar 0"),
    "NaN after the warm-up": (HEAD + COMPILED + COUNT + "    if 9 < s[0] < 50:\n        out[0] = 1.0\n" + END, 4,
                              "column 'a' is nan at bar 49 (2000-01-03 04:10 UTC), after its warm-up"),
    "infinite": (HEAD + COUNT + "    out[0] = np.inf\n" + END, 4, "column 'a' is inf at bar 0"),
    "state grows": (HEAD + COUNT + "    s.resize(s.size + 1, refcheck=False)\n    out[0] = 1.0\n" + END, 4,
                    "update changed the length of its state between bar 0 and bar"),
    "unknown field": (HEAD + "@nb.njit\ndef update(s, b, out):\n    out[0] = b.nothing\n" + END, 4, "nothing"),
    "syntax": (HEAD + "def update(s, b, out:\n    pass\n", 4, "the file cannot be loaded: SyntaxError"),
    "import": (HEAD + "import no_such_module\n", 4, "ModuleNotFoundError: No module named 'no_such_module'"),
    "exit": ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
    "nothing in it": (HEAD, 1, "it defines neither INDICATOR = Indicator(...) nor a function compute(bars)"),
    "not an indicator": (HEAD + "INDICATOR = 3\n", 4, "INDICATOR is a int"),
    "columns as text": (HEAD + "INDICATOR = Indicator('a', 'a', lambda: np.zeros(1), print)\n", 4,
                        "columns is 'a'; give a tuple"),
    "column named twice": (HEAD + "INDICATOR = Indicator('a', ('a', 'a'), lambda: np.zeros(1), print)\n", 4,
                           "a column is named twice"),
    "state is a list": (HEAD + "INDICATOR = Indicator('a', ('a',), lambda: [1], print)\n", 4,
                        "the state holds a list"),
    "state of objects": (HEAD + "INDICATOR = Indicator('a', ('a',), lambda: np.array([{}]), print)\n", 4,
                         "the state holds Python objects"),
    "state is shared": (HEAD + "Z = np.zeros(1)\nINDICATOR = Indicator('a', ('a',), lambda: Z, print)\n", 5,
                        "new_state() gives the same array each time"),
    "new_state raises": (HEAD + "INDICATOR = Indicator('a', ('a',), lambda: np.zeros(-1), print)\n", 4,
                         "new_state()"),
    "frame raises": (HEAD + "def compute(bars):\n    return bars.nothing\n", 5, "compute() over"),
    "frame drops rows": (HEAD + "def compute(bars):\n    return bars.close.iloc[5:]\n", 4, "another index"),
    "frame gives an array": (HEAD + "def compute(bars):\n    return bars.close.to_numpy()\n", 4,
                             "returned ndarray"),
    "frame gives text": (HEAD + "def compute(bars):\n    return bars.close.astype(str) + 'x'\n", 4, "no numbers"),
    "frame takes a name": (HEAD + "def compute(bars):\n    return bars[['close']]\n", 4, "'close' that exists"),
}


@pytest.mark.parametrize(("source", "line", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line(source: str, line: int, words: str, tmp_path: Path, bars: Bars) -> None:
    path = saved(tmp_path, source)
    with pytest.raises(UserError) as caught:
        build_with_own(bars, SYNTH, LEAN, [load_indicator(path)])
    text = str(caught.value)
    assert text.startswith(f"{path}, line {line}: ")
    assert words in text
    assert "\n" not in text
    assert caught.value.exit_code == 2


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_indicator(tmp_path / "nowhere.py")


def test_the_bar_of_a_fault_counts_from_the_start_of_the_stream(tmp_path: Path, bars: Bars) -> None:
    """Live, in blocks and over history, the same bar is named."""
    source = FAULTS["compiled raises"][0]
    own = load_indicator(saved(tmp_path, source))
    assert isinstance(own, Indicator)
    stream = FeatureStream(SYNTH, LEAN, bars.width_ns, [own])
    stream.extend(bars.slice(0, 90))
    with pytest.raises(UserError, match="at bar 50 "):
        push_all(stream, bars.slice(90, len(bars)))


def test_a_nan_is_found_across_blocks(tmp_path: Path, bars: Bars) -> None:
    """The first value in one block, the NaN in the next."""
    own = load_indicator(saved(tmp_path, FAULTS["NaN after the warm-up"][0]))
    assert isinstance(own, Indicator)
    stream = FeatureStream(SYNTH, LEAN, bars.width_ns, [own])
    stream.extend(bars.slice(0, 60))
    with pytest.raises(UserError, match="is nan at bar 49 "):
        stream.extend(bars.slice(60, len(bars)))


def test_the_version_is_the_hash_of_the_file(tmp_path: Path) -> None:
    own = load_indicator(EXAMPLE)
    assert own.version == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    changed = load_indicator(saved(tmp_path, EXAMPLE.read_text() + "# a comment\n"))
    assert isinstance(own, Indicator)
    assert isinstance(changed, Indicator)
    digests = {FeatureStream(SYNTH, LEAN, indicators=[i]).digest for i in (own, changed)}
    assert len(digests) == 2


def test_the_guard_changes_no_value(bars: Bars) -> None:
    own = load_indicator(EXAMPLE)
    assert isinstance(own, Indicator)
    guarded, plain = build(bars, SYNTH, LEAN, [own]), build(bars, SYNTH, LEAN, [original(own)])
    assert guarded.config_digest == plain.config_digest
    for name in own.columns:
        np.testing.assert_array_equal(guarded.base[name], plain.base[name])
        assert np.isfinite(guarded.base[name][23:]).all()
    closes, highs, lows = (plain.base[name][-24:] for name in ("close", "high", "low"))
    assert guarded.base["range_place_24"][-1] == (closes[-1] - lows.min()) / (highs.max() - lows.min())


def test_the_guarded_update_equals_its_run(bars: Bars) -> None:
    """Callers that use `update` bar by bar get the same values."""
    from algospace.features.indicator import bars_of_rows

    own = load_indicator(EXAMPLE)
    assert isinstance(own, Indicator)
    table = build(bars, SYNTH, LEAN)
    base = np.stack([table.base[n] for n in ("open", "high", "low", "close", "volume", "filled", "roll_factor")])
    records = bars_of_rows(table.ts_close, table.contract, base)
    whole = own.history(own.new_state(), records)
    state, out = own.new_state(), np.empty((2, records.size))
    for i, bar in enumerate(records.view(np.recarray)):
        own.update(state, bar, out[:, i])
    np.testing.assert_array_equal(out, whole)


def test_own_columns_continue_over_blocks_and_a_restart(bars: Bars) -> None:
    own = load_indicator(EXAMPLE)
    assert isinstance(own, Indicator)
    whole = build(bars, SYNTH, LEAN, [own])
    first, second = (FeatureStream(SYNTH, LEAN, bars.width_ns, [own]) for _ in range(2))
    head = first.extend(bars.slice(0, 200))
    second.restore(first.snapshot())
    joined = concatenate([head, second.extend(bars.slice(200, len(bars)))])
    for name in own.columns:
        np.testing.assert_array_equal(joined.base[name], whole.base[name])


def test_a_stream_refuses_the_frame_form_in_one_line(tmp_path: Path, bars: Bars) -> None:
    source = "def compute(bars):\n    return bars[['close']].rename(columns={'close': 'c'})\n"
    frame = load_indicator(saved(tmp_path, source))
    assert isinstance(frame, FrameIndicator)
    message = r"mine\.py, line 1: compute\(\) works on history only; for a stream write the step form"
    with pytest.raises(UserError, match=message):
        FeatureStream(SYNTH, LEAN, bars.width_ns, [frame])  # type: ignore[list-item]
    with pytest.raises(UserError, match=message):
        step_indicators([frame])
    table = build_with_own(bars, SYNTH, LEAN, [frame])
    np.testing.assert_array_equal(table.base["c"], table.base["close"])


def test_a_frame_cannot_change_the_bars(tmp_path: Path, bars: Bars) -> None:
    source = "def compute(bars):\n    bars['close'] = 0.0\n    return bars.high * 2\n"
    frame = load_indicator(saved(tmp_path, source))
    table = build_with_own(bars, SYNTH, LEAN, [frame])
    assert (table.base["close"] > 0).all()
    np.testing.assert_array_equal(table.base["mine"], table.base["high"] * 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_state_without_axes_survives_a_restart(tmp_path: Path, bars: Bars, compiled: bool) -> None:
    body = "def update(s, b, out):\n    s[()] += 1.0\n    out[0] = s[()]\n"
    source = (HEAD + (COMPILED if compiled else "") + body
              + "INDICATOR = Indicator('a', ('a',), lambda: np.zeros(()), update)\n")
    own = load_indicator(saved(tmp_path, source))
    assert isinstance(own, Indicator)
    whole = build(bars, SYNTH, LEAN, [own])
    first, second = (FeatureStream(SYNTH, LEAN, bars.width_ns, [own]) for _ in range(2))
    head = first.extend(bars.slice(0, 200))
    second.restore(first.snapshot())
    joined = concatenate([head, second.extend(bars.slice(200, len(bars)))])
    np.testing.assert_array_equal(joined.base["a"], whole.base["a"])


def test_a_state_whose_arrays_share_memory_is_refused(tmp_path: Path) -> None:
    """Restored, each would have its own: live would no longer equal history."""
    source = (HEAD + "from typing import Any, NamedTuple\nclass S(NamedTuple):\n    ring: Any\n    newest: Any\n"
              + "def new():\n    ring = np.zeros(9)\n    return S(ring, ring[:1])\n" + COUNT
              + "INDICATOR = Indicator('a', ('a',), new, update)\n")
    with pytest.raises(UserError, match="share memory, and would no longer once restored"):
        load_indicator(saved(tmp_path, source))


def test_an_own_indicator_travels_as_its_file(tmp_path: Path, bars: Bars) -> None:
    path = saved(tmp_path, EXAMPLE.read_text())
    own = load_indicator(path)
    assert isinstance(own, Indicator)
    packed = pickle.dumps(own)
    path.unlink()
    there = pickle.loads(packed)
    assert there.version == own.version
    np.testing.assert_array_equal(build(bars, SYNTH, LEAN, [there]).base[own.columns[0]],
                                  build(bars, SYNTH, LEAN, [own]).base[own.columns[0]])

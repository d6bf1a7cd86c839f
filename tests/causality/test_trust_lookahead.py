"""`check lookahead` finds every common way of knowing the future, and finds nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import UserError
from algospace.features import FeatureConfig
from algospace.features.own import load_indicator
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate
from algospace.trust import (
    Features,
    LookaheadReport,
    Rows,
    check_live,
    check_lookahead,
    choose_cuts,
    inspect_features,
    live_builder,
    live_twin,
    live_whole,
)
from algospace.trust.cuts import nasty_places
from algospace.trust.report import verdict
from algospace.types import BASE_BAR_NS, MINUTE_NS, SLOW_BAR_NS, Bars

ROOT = Path(__file__).resolve().parents[2]
SYNTH = instrument("SYNTH")
LEAN = FeatureConfig(regime=False)
HEAD = "import numba as nb\nimport numpy as np\nimport pandas as pd\nfrom algospace.features import Indicator\n"
STEP = HEAD + "{before}\ndef update(state, bar, out):\n{body}\n" \
    "INDICATOR = Indicator('mine', ('mine',), lambda: np.zeros(2), update)\n"


@pytest.fixture(scope="module")
def bars() -> Bars:
    return generate("stress", 5, 700, "1m").bars


def inspect(tmp_path: Path, source: str, bars: Bars, cuts: int = 8) -> LookaheadReport:
    path = tmp_path / "mine.py"
    path.write_text(source)
    features = Features(SYNTH, LEAN, [load_indicator(path)])
    return inspect_features(features, bars, cuts, live_events=300)


HONEST_FRAMES = {
    "rolling": "return bars.close.rolling(20).mean()",
    "expanding": "return bars.close / bars.close.expanding().max()",
    "shift": "return bars.close.diff()",
    "ewm": "return bars.close.ewm(span=10, adjust=False).mean()",
}
CHEATING_FRAMES = {
    "shift(-1)": "return bars.close.shift(-1)",
    "centred window": "return bars.close.rolling(5, center=True).mean()",
    "z-score of the whole sample": "return (bars.close - bars.close.mean()) / bars.close.std()",
    "min-max of the whole sample": "return bars.close / bars.close.max()",
    "bfill of the warm-up": "return bars.close.rolling(20).mean().bfill()",
    "bfill of filled bars": "return bars.close.where(~bars.filled).bfill().ffill()",
    "interpolation": "return bars.close.where(np.arange(len(bars)) % 3 == 0).interpolate()",
    "Fourier smoothing": "return pd.Series(np.fft.irfft(np.fft.rfft(bars.close)[:9], len(bars)), bars.index)",
    "hours labelled by their start": "return bars.close.resample('1h').last().reindex(bars.index, method='ffill')",
    "ranks of the whole sample": "return bars.close.rank()",
    "reversed loop": "return bars.close[::-1].ewm(span=5).mean()[::-1]",
}


@pytest.mark.parametrize("body", HONEST_FRAMES.values(), ids=HONEST_FRAMES)
def test_honest_frames_are_clean(body: str, tmp_path: Path, bars: Bars) -> None:
    report = inspect(tmp_path, f"{HEAD}def compute(bars):\n    {body}\n", bars)
    assert report.leaking == []
    report.require_clean()


@pytest.mark.parametrize("body", CHEATING_FRAMES.values(), ids=CHEATING_FRAMES)
def test_frames_that_look_ahead_are_found(body: str, tmp_path: Path, bars: Bars) -> None:
    report = inspect(tmp_path, f"{HEAD}def compute(bars):\n    {body}\n", bars)
    assert len(report.leaking) == 1, "the columns of the pipeline stay clean beside it"
    found = next(check for check in report.columns if not check.clean)
    assert found.first_ts is not None
    assert found.first_cut
    with pytest.raises(UserError, match=r"look-ahead in 1 columns: base\."):
        report.require_clean()


def test_the_first_wrong_row_is_named(tmp_path: Path, bars: Bars) -> None:
    """Of shift(-1), only the last row before each cut is wrong, and the first cut shows row 0."""
    report = inspect(tmp_path, HEAD + "def compute(bars):\n    return bars.close.shift(-1)\n", bars)
    found = next(check for check in report.columns if not check.clean)
    assert found.first_row == 0
    assert found.differing <= len(report.cuts)


def test_the_example_is_clean_live_and_cut() -> None:
    own = load_indicator(ROOT / "docs" / "examples" / "my_indicator.py")
    report = inspect_features(Features(SYNTH, LEAN, [own]), generate("stress", 6, 500, "1m").bars, 6, 300)
    report.require_clean()
    assert report.live_events > 0
    assert {"base.range_place_24", "base.ema_distance_24"} <= {check.name for check in report.columns}


REMEMBERED = "SEEN = {}\n"
CHEATING_STEPS = {
    "remembers the bars of earlier runs in a global": STEP.format(
        before=REMEMBERED, body="    SEEN[bar.ts_close] = bar.close\n"
        "    out[0] = SEEN.get(bar.ts_close + 300_000_000_000, 0.0)"),
    "counts calls in a global": STEP.format(
        before="N = [0]\n", body="    N[0] += 1\n    out[0] = N[0]"),
    "keeps memory in a default argument": HEAD + (
        "def update(state, bar, out, memory=[]):\n    memory.append(bar.close)\n    out[0] = max(memory)\n"
        "INDICATOR = Indicator('mine', ('mine',), lambda: np.zeros(2), update)\n"),
}


@pytest.mark.parametrize("source", CHEATING_STEPS.values(), ids=CHEATING_STEPS)
def test_steps_with_memory_outside_their_state_are_found(source: str, tmp_path: Path, bars: Bars) -> None:
    assert "base.mine" in inspect(tmp_path, source, bars).leaking


@pytest.mark.parametrize("config", [FeatureConfig(), LEAN], ids=["with matrices", "without"])
def test_a_step_that_remembers_an_earlier_run_is_found(config: FeatureConfig, tmp_path: Path) -> None:
    """The first table built must be the first that the indicator sees, or all would hold the same memory."""
    path = tmp_path / "mine.py"
    path.write_text(STEP.format(before="TOP = [0.0]\n",
                                body="    TOP[0] = max(TOP[0], bar.close)\n    out[0] = bar.close / TOP[0]"))
    bars = generate("session", 5, 4_000).bars
    report = inspect_features(Features(SYNTH, config, [load_indicator(path)]), bars, 6, live_events=100)
    assert report.leaking == ["base.mine"]
    assert report.notes == () or config is LEAN


REMEMBERING_FRAMES = {
    "scaler fitted once": ("FITTED = {}\n", "if not FITTED:\n        FITTED['mean'] = bars.close.mean()\n"
                           "    return bars.close / FITTED['mean']"),
    "first result kept": ("KEPT = []\n", "KEPT.append(bars.close.shift(-1))\n"
                          "    return KEPT[0].reindex(bars.index).ffill()"),
    "kept as an attribute": ("", "if not hasattr(compute, 'top'):\n        compute.top = bars.close.max()\n"
                             "    return bars.close / compute.top"),
}


@pytest.mark.parametrize(("before", "body"), REMEMBERING_FRAMES.values(), ids=REMEMBERING_FRAMES)
def test_frames_that_keep_what_they_saw_of_the_whole_are_found(
    before: str, body: str, tmp_path: Path, bars: Bars
) -> None:
    report = inspect(tmp_path, f"{HEAD}{before}def compute(bars):\n    {body}\n", bars)
    assert report.leaking == ["base.mine"]


def test_a_frame_that_reads_a_global_full_of_values_is_named(tmp_path: Path, bars: Bars) -> None:
    report = inspect(tmp_path, f"{HEAD}FUTURE = np.arange(9000.0)\ndef compute(bars):\n"
                     "    return pd.Series(FUTURE[1:len(bars) + 1], bars.index)\n", bars)
    assert report.leaking == []
    with pytest.raises(UserError, match=r"'FUTURE' \(9000 values\) beside the bars"):
        report.require_clean()


def test_look_ahead_over_weekends_alone_is_found(tmp_path: Path) -> None:
    """In one row of a thousand: the cut just before a weekend shows it, others do not."""
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "def compute(bars):\n"
                    "    gap = bars.index.to_series().shift(-1) - bars.index.to_series()\n"
                    "    return bars.close.where(~(gap > pd.Timedelta('1D')), bars.close.shift(-1))\n")
    market = generate("session", 5, 4_000).bars
    report = inspect_features(Features(SYNTH, LEAN, [load_indicator(path)]), market, 4, live_events=100)
    assert report.leaking == ["base.mine"]
    assert next(c for c in report.columns if not c.clean).first_cut.startswith("before a weekend")


READING_STEPS = {
    "keyword": HEAD + (
        "def update(state, bar, out, *, future=np.arange(9000.0)):\n    out[0] = future[int(state[0]) + 1]\n"
        "    state[0] += 1\nINDICATOR = Indicator('mine', ('mine',), lambda: np.zeros(2), update)\n"),
    "partial": HEAD + (
        "import functools\ndef peek(future, state, bar, out):\n    out[0] = future[int(state[0]) + 1]\n"
        "    state[0] += 1\nINDICATOR = Indicator('mine', ('mine',), lambda: np.zeros(2),\n"
        "                      functools.partial(peek, np.arange(9000.0)))\n"),
    "method": HEAD + (
        "class Peek:\n    def __init__(self):\n        self.future = np.arange(9000.0)\n"
        "    def update(self, state, bar, out):\n        out[0] = self.future[int(state[0]) + 1]\n"
        "        state[0] += 1\n"
        "INDICATOR = Indicator('mine', ('mine',), lambda: np.zeros(2), Peek().update)\n"),
    "callable object": HEAD + (
        "class Peek:\n    future = list(range(9000))\n    def __call__(self, state, bar, out):\n"
        "        out[0] = self.future[int(state[0]) + 1]\n        state[0] += 1\n"
        "INDICATOR = Indicator('mine', ('mine',), lambda: np.zeros(2), Peek())\n"),
    "nested": STEP.format(before="FUTURE = {'NQ': [np.arange(9000.0)]}\n",
                          body="    out[0] = FUTURE['NQ'][0][int(state[0]) + 1]\n    state[0] += 1"),
    "class": STEP.format(before="class Data:\n    future = np.arange(9000.0)\n",
                         body="    out[0] = Data.future[int(state[0]) + 1]\n    state[0] += 1"),
    "cached": STEP.format(before="import functools\nFUTURE = np.arange(9000.0)\n@functools.cache\n"
                          "def peek(i):\n    return FUTURE[i]\n",
                          body="    out[0] = peek(int(state[0]) + 1)\n    state[0] += 1"),
    "array": STEP.format(before="FUTURE = np.arange(9000.0)\n",
                         body="    out[0] = FUTURE[int(state[0]) + 1]\n    state[0] += 1"),
    "compiled": STEP.format(before="FUTURE = np.arange(9000.0)\n@nb.njit",
                            body="    out[0] = FUTURE[int(state[0]) + 1]\n    state[0] += 1"),
    "helper": STEP.format(before="FUTURE = list(range(9000))\ndef peek(i):\n    return FUTURE[i]\n",
                          body="    out[0] = peek(int(state[0]) + 1)\n    state[0] += 1"),
    "object": STEP.format(before="class Box:\n    pass\nBOX = Box()\nBOX.future = pd.Series(np.arange(9000.0))\n",
                          body="    out[0] = BOX.future[int(state[0]) + 1]\n    state[0] += 1"),
}


@pytest.mark.parametrize("source", READING_STEPS.values(), ids=READING_STEPS)
def test_steps_that_read_a_global_full_of_values_are_named(source: str, tmp_path: Path, bars: Bars) -> None:
    """Cutting the bars does not cut a global, so that it is there at all is the finding."""
    report = inspect(tmp_path, source, bars)
    assert not report.clean
    assert report.leaking == []
    with pytest.raises(UserError, match="outside its state"):
        report.require_clean()


@pytest.mark.parametrize("imports", ["import {m}", "from {m} import peek", "from {m} import FUTURE", ""])
def test_values_in_a_module_of_ones_own_are_named(
    imports: str, tmp_path: Path, bars: Bars, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"prices_{len(imports)}"
    (tmp_path / f"{module}.py").write_text("FUTURE = list(range(9000))\ndef peek(i):\n    return FUTURE[i]\n")
    monkeypatch.syspath_prepend(tmp_path)
    call = {"import {m}": f"{module}.peek(int(state[0]))", "from {m} import peek": "peek(int(state[0]))",
            "from {m} import FUTURE": "FUTURE[int(state[0])]", "": f"{module}.FUTURE[int(state[0])]"}[imports]
    inside = "" if imports else f"    import {module}\n"
    source = STEP.format(before=imports.format(m=module), body=f"{inside}    out[0] = {call}\n    state[0] += 1")
    with pytest.raises(UserError, match=r"FUTURE' \(9000 values\) from outside its state"):
        inspect(tmp_path, source, bars).require_clean()


def test_small_constants_and_installed_packages_are_fine(tmp_path: Path, bars: Bars) -> None:
    source = STEP.format(
        before="import math\nimport logging\nLOG = logging.getLogger('mine')\nWEIGHTS = {'a': [0.5] * 20}\n"
               "RATES = pd.Series(np.ones(30))\ndef mean(w):\n    return float(np.mean(w))\n",
        body="    LOG.debug('bar')\n    out[0] = mean(WEIGHTS['a']) * RATES[3] * math.sqrt(bar.close)")
    inspect(tmp_path, source, bars).require_clean()


def test_a_future_in_the_first_state_is_named(tmp_path: Path, bars: Bars) -> None:
    source = HEAD + ("def update(state, bar, out):\n    out[0] = state[int(state[0])]\n    state[0] += 1\n"
                     "INDICATOR = Indicator('mine', ('mine',), lambda: np.arange(9000.0), update)\n")
    with pytest.raises(UserError, match="9000 different values in its state"):
        inspect(tmp_path, source, bars).require_clean()


def test_a_30_minute_bar_labelled_by_its_start_comes_late(bars: Bars) -> None:
    """Equal wherever it exists, but a row that is labelled 10:00 appears only with the data of 10:30."""

    def build(part: Bars) -> dict[str, Rows]:
        bucket = part.ts_open // SLOW_BAR_NS
        done = np.flatnonzero((bucket[1:] != bucket[:-1]) | (part.ts_open[:-1] % SLOW_BAR_NS == 29 * MINUTE_NS))
        return {"30m": Rows(bucket[done] * SLOW_BAR_NS, {"close": part.close[done]})}

    report = check_lookahead(build, bars, choose_cuts(bars, 10))
    assert report.leaking == ["30m.(row is late)"]


def test_a_column_without_values_is_not_called_clean(tmp_path: Path, bars: Bars) -> None:
    report = inspect(tmp_path, HEAD + "def compute(bars):\n    return bars.close * np.nan\n", bars)
    assert "base.mine" in report.empty
    assert verdict(next(check for check in report.columns if check.name == "base.mine")) == "no values"


def test_cuts_are_even_and_nasty(bars: Bars) -> None:
    cuts = choose_cuts(bars, 24)
    reasons = {cut.reason for cut in cuts}
    assert {"even", "first bars", "inside a base bar", "inside a 30-minute bar", "before a break",
            "first bar after a break"} <= reasons
    for reason, rows in nasty_places(bars, BASE_BAR_NS, SLOW_BAR_NS):
        assert (rows >= 0).all(), reason
        assert (rows <= len(bars)).all(), reason
    inside = next(cut for cut in cuts if cut.reason == "inside a base bar")
    assert (bars.ts_open[inside.rows - 1] + bars.width_ns) % BASE_BAR_NS != 0


def test_a_live_twin_that_differs_is_found(bars: Bars) -> None:
    features = live_twin(Features(SYNTH, LEAN))
    live = live_builder(features)

    def wrong(part: Bars, start: int, stop: int) -> object:
        groups, first = live(part, start, stop)
        groups["base"].columns["close"][-1] += 0.25
        return groups, first

    whole = live_whole(features, bars)
    stretch = [(len(bars) - 400, len(bars))]
    right, events = check_live(live, whole, bars, stretch)
    assert all(check.clean for check in right)
    assert events == 400
    found, _ = check_live(wrong, whole, bars, stretch)  # type: ignore[arg-type]
    assert [check.name for check in found if not check.clean] == ["base.close"]


def nq_bars(root: Path, year: int) -> Bars:
    frame = pd.read_parquet(root / "nq_1m" / f"nq_1m_{year}.parquet")
    ts = frame["ts_utc"].astype("datetime64[ns, UTC]").astype("int64").to_numpy()
    prices = [frame[name].to_numpy(np.float64) for name in ("open", "high", "low", "close")]
    return Bars(ts, *prices, np.full(len(frame), np.nan), MINUTE_NS, frame["contract"].to_numpy(np.int32))


def test_every_column_of_nq_through_halt_and_roll(data_root: Path) -> None:
    """Columns, matrices and decisions over the limit-down halt of March 2020 and a roll, cut and live."""
    stretch = nq_bars(data_root, 2020).slice(55_000, 92_000)
    report = inspect_features(Features(instrument("NQ")), stretch, 24, 2_000)
    report.require_clean()
    assert {check.group for check in report.columns} == {
        "base", "30m", "tactical", "strategic", "regime", "market"}
    assert {"before a roll", "before a halt", "before a break"} <= {cut.reason for cut in report.cuts}
    assert report.notes == ()


@pytest.mark.slow
def test_every_column_of_a_year_of_nq(data_root: Path) -> None:
    report = inspect_features(Features(instrument("NQ")), nq_bars(data_root, 2019), 40)
    report.require_clean()
    assert report.notes == ()

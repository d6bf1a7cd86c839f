"""Fuzz every importer: whatever the bytes, a clear error or a result that holds its promises.

    python -m tests.fuzz.importers --seconds 600 --seed 1

A failing file is kept in tests/fuzz/cases/ under the name of its kind; tests/property/test_fuzz_importers.py
replays them all.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from algospace.errors import UserError
from algospace.marketdata import ImportOptions, import_file
from algospace.marketdata.ticks import QuoteImportOptions, TickImportOptions, import_quotes, import_ticks
from tests.fuzz import mutations

CASES = Path(__file__).parent / "cases"
KINDS = ("bars", "ticks", "quotes")
SLOW_S = 20.0


def make_case(kind: str, rng: random.Random) -> tuple[str, bytes]:
    """(suffix, bytes) of a damaged file."""
    frame = mutations.damage_frame(mutations.SEEDS[kind](rng), rng)
    if rng.random() < 0.5 and frame.columns.size:
        return ".parquet", mutations.parquet_bytes(frame, rng)
    return ".csv", mutations.csv_bytes(frame, rng)


def check(kind: str, path: Path, tolerant: bool) -> str:
    """Import the file and hold the result to its promises; the outcome in a word.

    Raises whatever the importer must not raise, and AssertionError for a broken promise.
    """
    share = 1.0 if tolerant else 0.001
    try:
        {"bars": check_bars, "ticks": check_ticks, "quotes": check_quotes}[kind](path, share)
    except UserError as error:
        message = str(error)
    else:
        return "accepted"
    assert "\n" not in message, "an error is one line"
    assert len(message) < 2000
    return "refused"


def check_bars(path: Path, share: float) -> None:
    result = import_file(path, "ES", ImportOptions(max_bad_fraction=share))
    bars, report = result.bars, result.report
    assert (np.diff(bars.ts_open) > 0).all()
    assert (bars.low > 0).all()
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert np.isfinite(bars.high).all()
    assert not (bars.volume < 0).any()
    assert bars.width_ns > 0
    assert report.rows_out == len(bars)
    kept = report.rows_out + report.bad_rows + report.reported["other_contracts"]
    assert report.rows_in == kept, (report.rows_in, kept)
    assert result.quarantine.num_rows == report.bad_rows


def check_ticks(path: Path, share: float) -> None:
    result = import_ticks(path, "ES", TickImportOptions(max_bad_fraction=share))
    ticks, report = result.ticks, result.report
    assert np.isfinite(ticks.price).all()
    assert (ticks.price > 0).all()
    assert not (ticks.size < 0).any()
    assert report.rows_in == report.rows_out + report.filtered_rows + report.bad_rows
    assert report.rows_out == len(ticks)
    assert result.quarantine.num_rows == report.bad_rows


def check_quotes(path: Path, share: float) -> None:
    result = import_quotes(path, "ES", QuoteImportOptions(max_bad_fraction=share))
    quotes = result.quotes
    assert (quotes.bid <= quotes.ask).all()
    assert np.isfinite(quotes.bid).all()
    assert result.quarantine.num_rows == result.report.bad_rows


def fuzz(seconds: float, seed: int, keep: bool, most: int = sys.maxsize) -> tuple[Counter[str], list[Path | str]]:
    """(outcomes, failing files) of at most `most` random cases for so long."""
    rng, outcomes, failures = random.Random(seed), Counter[str](), []
    seen: set[str] = set()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while time.monotonic() < end and outcomes.total() < most:
            kind = rng.choice(KINDS)
            suffix, data = make_case(kind, rng)
            path = Path(folder) / f"case{suffix}"
            path.write_bytes(data)
            started = time.monotonic()
            try:
                word = check(kind, path, tolerant=rng.random() < 0.5)
                if time.monotonic() - started > SLOW_S:
                    raise TimeoutError(f"took over {SLOW_S:.0f} s")
            except Exception as error:  # noqa: BLE001 - whatever comes is what we look for
                word = "FAILED"
                where = f"{type(error).__name__} {traceback.extract_tb(error.__traceback__)[-1].name}"
                if where not in seen:
                    seen.add(where)
                    traceback.print_exc()
                    failures.append(save(kind, suffix, data) if keep else where)
            outcomes[f"{kind} {word}"] += 1
    return outcomes, failures


def save(kind: str, suffix: str, data: bytes) -> Path:
    path = CASES / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
    path.write_bytes(data)
    return path


def main() -> int:
    """Fuzz for a while; the exit code is 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    outcomes, failures = fuzz(arguments.seconds, arguments.seed, keep=True)
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome:20s} {count}")
    for path in failures:
        print(f"kept {path}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Files that once broke an importer, and some hundred fresh damaged ones: refused in a line, or imported whole."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.fuzz.importers import CASES, KINDS, check, fuzz

FOUND = sorted(path for path in CASES.iterdir() if path.suffix in (".csv", ".parquet"))


def test_found_cases_are_kept() -> None:
    assert FOUND


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_a_found_case_stays_solved(path: Path, tolerant: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check(path.name.split("-")[0], path, tolerant) in {"accepted", "refused"}


def test_fresh_damage_is_refused_in_a_line_or_imported_whole() -> None:
    outcomes, failures = fuzz(seconds=60.0, seed=20_261_121, keep=False, most=600)
    assert failures == []
    assert all(outcomes[f"{kind} accepted"] > 10 and outcomes[f"{kind} refused"] > 10 for kind in KINDS)

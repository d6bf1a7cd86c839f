"""Memory of a block-wise build does not grow with the history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from algospace.marketdata import Catalog, import_file
from tests.conftest import REPOSITORY

_BUILD = """
import json, sys
from algospace.features.block_source import open_source
from algospace.features.blocks import build_blocks
from algospace.instruments import instrument
source = open_source(sys.argv[1], instrument("NQ"))
source = source._replace(months=source.months[:int(sys.argv[3])])
report = build_blocks(source, instrument("NQ"), None, sys.argv[2])
print(json.dumps([report.rows, report.peak_bytes]))
"""


def _peak(catalog: Path, out: Path, months: int) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", _BUILD, str(catalog), str(out), str(months)], cwd=REPOSITORY,
                          env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, peak = json.loads(done.stdout)
    if not peak:
        pytest.skip("peak memory is read from /proc")
    return rows, peak


@pytest.mark.slow
def test_a_hundred_months_take_no_more_memory_than_three(data_root: Path, tmp_path: Path) -> None:
    Catalog(tmp_path / "catalog").write_import("NQ", import_file(data_root / "nq_1m", "NQ"))
    _peak(tmp_path / "catalog", tmp_path / "compiled", 1)
    short_rows, short_peak = _peak(tmp_path / "catalog", tmp_path / "short", 3)
    rows, peak = _peak(tmp_path / "catalog", tmp_path / "long", 132)
    assert (rows, short_rows < rows / 30) == (786_823, True)
    # what the indicators remember, MLMI's points, and the allocator's slack; the table itself is 0.4 GB
    assert peak - short_peak < 50e6

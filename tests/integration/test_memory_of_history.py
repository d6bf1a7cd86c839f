"""Eleven years of 1-minute bars stay below 1 GB: read, features, files; and the results do not depend on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_BYTES = 1_000_000_000

# ru_maxrss would also count what the process inherited from its parent before exec.
_PEAK = """
from pathlib import Path
line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""

_BUILD = """
from algospace.features import build
from algospace.instruments import instrument
from algospace.marketdata import read_source
print(len(build(read_source("nq_1m", "NQ"), instrument("NQ"))))
"""

_WRITE = """
from algospace.cli import main
import sys
sys.argv = ["algospace", "features", "nq_1m", "--instrument", "NQ", "--out", {out!r}, "--json"]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""


def _run(code: str, data_root: Path, folder: Path) -> list[str]:
    if not Path("/proc/self/status").is_file():
        pytest.skip("peak memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, "ALGOSPACE_DATA": str(data_root)})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def compiled() -> None:
    """Compiled code on disk: compiling itself takes some 0.2 GB, once per machine."""
    from algospace.features import build
    from algospace.instruments import instrument
    from algospace.marketdata.synthetic import generate, scenario_named

    build(generate(scenario_named("easy"), 1, 2000).bars, instrument("NQ"))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_eleven_years_of_features_take_less_than_one_gigabyte(data_root: Path, tmp_path: Path) -> None:
    rows, peak = _run(_BUILD + _PEAK, data_root, tmp_path)
    assert int(rows) == 786_823
    assert int(peak) < LIMIT_BYTES


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_the_command_over_eleven_years_takes_less_than_one_gigabyte(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "nq.parquet"
    summary, peak = _run(_WRITE.format(out=str(out)) + _PEAK, data_root, tmp_path)
    assert json.loads(summary)["rows"] == 786_823
    assert out.is_file()
    assert int(peak) < LIMIT_BYTES

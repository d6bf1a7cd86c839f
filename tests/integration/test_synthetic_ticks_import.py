"""What `algospace data synth --resolution ticks` writes passes the tick importer whole, like a vendor's file."""

import numpy as np
import pytest

from algospace.errors import InputError
from algospace.instruments import instrument
from algospace.marketdata.synthetic_tick_files import write_ticks
from algospace.marketdata.synthetic_ticks import TickOptions, plan_ticks
from algospace.marketdata.ticks import TickImportOptions, import_ticks

SYNTH = instrument("SYNTH")


def test_every_print_and_column_comes_back_over_a_roll(tmp_path):
    plan = plan_ticks("stress", 3, 14_000, TickOptions(contracts_per_tick=400.0, latency_ms=1.0))
    assert write_ticks(plan, tmp_path / "market") > 14_000 * 20 - 1
    result = import_ticks(tmp_path / "market" / "ticks.parquet", SYNTH, TickImportOptions(symbols=plan.contracts))
    assert tuple(result.contracts) == plan.contracts == ("SYNTHH00", "SYNTHM00")
    for name, values in plan.ticks().columns().items():
        np.testing.assert_array_equal(result.ticks.columns()[name], values, err_msg=name)
    reported = result.report.reported
    assert reported["rolls"] == 1
    for fault in ("outside_trading_hours", "off_tick_grid", "zero_size", "crossed_quotes", "aggressor_unknown"):
        assert reported[fault] == 0, fault


def test_late_prints_are_quarantined_and_named(tmp_path):
    plan = plan_ticks("session", 3, 300, TickOptions(late_rate=0.02, duplicate_rate=0.02, roll_basis_bp=0.0))
    write_ticks(plan, tmp_path / "market")
    with pytest.raises(InputError, match=r"ticks\.parquet"):
        import_ticks(tmp_path / "market" / "ticks.parquet", SYNTH)
    result = import_ticks(tmp_path / "market" / "ticks.parquet", SYNTH, TickImportOptions(max_bad_fraction=0.1))
    ticks = plan.ticks()
    late = int((np.maximum.accumulate(ticks.ts) > ticks.ts).sum())
    assert late > 0
    assert len(result.ticks) <= len(ticks) - late
    assert (np.diff(result.ticks.ts) >= 0).all()
    assert result.report.rows_in == len(ticks)

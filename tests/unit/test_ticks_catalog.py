"""The catalog of ticks: idempotent, honest about overlaps, whole or not at all, and blind to the future."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import InputError
from algospace.marketdata import Catalog
from algospace.marketdata.catalog import find_catalog
from algospace.marketdata.ticks import TickCatalog, TickImportOptions, import_ticks
from algospace.types import DAY_NS, SECOND_NS, Bars, Ticks

START = int(pd.Timestamp("2024-03-04 22:00").value)


def make(n: int = 1000, start: int = START, step: int = 20 * SECOND_NS, seed: int = 0) -> Ticks:
    """n ticks, across midnight by default."""
    rng = np.random.default_rng(seed)
    ts = start + np.arange(n) * step
    return Ticks(ts, 5000 + 0.25 * np.cumsum(rng.integers(-1, 2, n)), rng.integers(1, 9, n).astype(float),
                 aggressor=rng.integers(-1, 2, n).astype(np.int8), ts_recv=ts + rng.integers(1, 10**9, n))


def assert_equal(a: Ticks, b: Ticks) -> None:
    assert a.columns().keys() == b.columns().keys()
    for name, column in a.columns().items():
        np.testing.assert_array_equal(column, b.columns()[name], err_msg=name)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_what_was_written_is_read_back_by_range_and_by_day(tmp_path: Path) -> None:
    ticks, catalog = make(), TickCatalog(tmp_path)
    written = catalog.write("ES", ticks)
    assert (written.days, written.added, written.removed) == (2, 1000, 0)
    assert_equal(catalog.read("ES"), ticks)
    assert catalog.days("ES") == ["2024-03-04", "2024-03-05"]
    start, end = START + 3600 * SECOND_NS, START + 3 * 3600 * SECOND_NS
    assert_equal(catalog.read("ES", start, end), ticks.take((ticks.ts >= start) & (ticks.ts < end)))
    days = list(catalog.iterate("ES"))
    assert [day for day, _ in days] == catalog.days("ES")
    assert all((part.ts // DAY_NS == np.datetime64(day).astype(int)).all() for day, part in days)
    assert len(catalog.read("ES", 0, 1)) == 0
    assert catalog.read("ES", 0, 1).columns().keys() == ticks.columns().keys()


def test_as_of_reads_only_what_was_known(tmp_path: Path) -> None:
    ticks, catalog = make(), TickCatalog(tmp_path)
    catalog.write("ES", ticks)
    assert ticks.ts_recv is not None
    for instant in (START - 1, int(ticks.ts[500]), int(ticks.ts_recv[500]), int(ticks.ts_recv[500]) - 1):
        known = (ticks.ts <= instant) & (ticks.ts_recv <= instant)
        assert_equal(catalog.read("ES", as_of_ns=instant), ticks.take(known))


def test_importing_the_same_file_again_changes_not_one_byte(tmp_path: Path) -> None:
    data = pd.DataFrame({"ts_event": make().ts, "price": make().price, "size": make().size})
    data.loc[3, "price"] = np.nan
    data.to_parquet(tmp_path / "t.parquet")
    result = import_ticks(tmp_path / "t.parquet", "ES", TickImportOptions(max_bad_fraction=0.01))
    catalog = TickCatalog(tmp_path / "out")
    catalog.write_import("ES", result)
    before = snapshot(tmp_path / "out")
    again = catalog.write_import("ES", result)
    assert (again.days, again.added, again.removed) == (0, 0, 0)
    assert snapshot(tmp_path / "out") == before
    assert any(name.endswith("quarantine.parquet") for name in before)


def test_sources_of_other_times_join_in_order_whatever_comes_first(tmp_path: Path) -> None:
    whole = make()
    parts = [whole.take(slice(0, 300)), whole.take(slice(300, 700)), whole.take(slice(700, 1000))]
    for k, order in enumerate(([0, 1, 2], [2, 0, 1])):
        catalog = TickCatalog(tmp_path / str(k))
        for part in order:
            catalog.write("ES", parts[part], source=f"part{part}")
        assert_equal(catalog.read("ES"), whole)


def test_a_split_within_one_instant_loses_no_print(tmp_path: Path) -> None:
    whole = make()
    whole.ts[400:420] = whole.ts[400]
    catalog = TickCatalog(tmp_path)
    catalog.write("ES", whole.take(slice(410, 1000)), source="b")
    catalog.write("ES", whole.take(slice(0, 410)), source="a")
    read = catalog.read("ES")
    assert len(read) == 1000
    np.testing.assert_array_equal(read.ts, whole.ts)
    assert sorted(read.size) == sorted(whole.size)


def test_overlaps_are_refused_replaced_or_appended_but_never_guessed(tmp_path: Path) -> None:
    first, second = make(seed=1), make(500, START + 250 * 20 * SECOND_NS, seed=2)
    catalog = TickCatalog(tmp_path)
    catalog.write("ES", first, source="a")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="overlaps the ticks of a"):
        catalog.write("ES", second, source="b")
    assert snapshot(tmp_path) == before
    catalog.write("ES", second, source="b", overlap="replace")
    expected = np.r_[first.price[:250], second.price, first.price[750:]]
    np.testing.assert_array_equal(catalog.read("ES").price, expected)
    settled = snapshot(tmp_path)
    assert catalog.write("ES", second, source="b").days == 0  # decided before
    assert snapshot(tmp_path) == settled
    appended = TickCatalog(tmp_path / "both")
    appended.write("ES", first, source="a")
    appended.write("ES", second, source="b", overlap="append")
    assert len(appended.read("ES")) == 1500
    assert (np.diff(appended.read("ES").ts) >= 0).all()


def test_a_source_that_names_no_contract_can_hold_the_trades_of_one_that_does(tmp_path: Path) -> None:
    """The same trades, once from a file with a symbol and once from one without, must not be there twice."""
    unnamed, named = make(seed=1), replace(make(500, START + 250 * 20 * SECOND_NS, seed=2),
                                           contract=np.zeros(500, np.int32))
    expected = np.r_[unnamed.price[:250], named.price, unnamed.price[750:]]
    writes = [("whole", unnamed, ()), ("part", named, ("ESH4",))]
    for k, ((_, *held), (name, *fresh)) in enumerate([writes, writes[::-1]]):
        catalog = TickCatalog(tmp_path / str(k))
        catalog.write("ES", *held, source="a")
        with pytest.raises(InputError, match=f"{name} .* overlaps the ticks of a"):
            catalog.write("ES", *fresh, source=name)
        catalog.write("ES", *fresh, source=name, overlap="replace")
        settled = snapshot(tmp_path / str(k))
        assert catalog.write("ES", *fresh, source=name).days == 0
        assert snapshot(tmp_path / str(k)) == settled
        np.testing.assert_array_equal(catalog.read("ES").price, unnamed.price if k else expected)


def test_a_newer_file_of_the_same_name_replaces_its_own_time_only(tmp_path: Path) -> None:
    first = make()
    newer = replace(first.take(slice(200, 1000)), price=first.price[200:] + 1)
    catalog = TickCatalog(tmp_path)
    catalog.write("ES", first, source="trades.csv")
    written = catalog.write("ES", newer, source="trades.csv")
    assert (written.added, written.removed) == (800, 800)
    np.testing.assert_array_equal(catalog.read("ES").price, np.r_[first.price[:200], newer.price])


def test_contracts_of_one_day_do_not_displace_each_other(tmp_path: Path) -> None:
    catalog = TickCatalog(tmp_path)
    one, two = (replace(make(seed=k), contract=np.zeros(1000, np.int32)) for k in (1, 2))
    catalog.write("NQ", one, ["NQM5"], "m")
    catalog.write("NQ", two, ["NQU5"], "u")
    read = catalog.read("NQ")
    assert catalog.contracts("NQ") == ["NQM5", "NQU5"]
    assert read.contract is not None
    np.testing.assert_array_equal(read.price[read.contract == 1], two.price)
    catalog.write("NQ", make(10, START - DAY_NS), source="unnamed")
    read = catalog.read("NQ")
    assert catalog.contracts("NQ") == ["NQM5", "NQU5", ""]
    assert read.contract is not None
    assert read.contract[:10].tolist() == [2] * 10


def test_optional_columns_of_some_sources_only(tmp_path: Path) -> None:
    catalog = TickCatalog(tmp_path)
    plain = make(10)
    catalog.write("ES", Ticks(plain.ts, plain.price, np.full(10, np.nan)), source="plain")
    catalog.write("ES", replace(make(10, START + DAY_NS), bid=np.full(10, 4999.0)), source="rich")
    read = catalog.read("ES")
    assert set(read.columns()) == {"ts", "price", "size", "bid", "aggressor"}  # ts_recv is not known for all
    assert np.isnan(read.size[:10]).all()
    assert read.bid is not None
    assert np.isnan(read.bid[:10]).all()


def test_ticks_and_bars_share_a_root_without_seeing_each_other(tmp_path: Path) -> None:
    TickCatalog(tmp_path).write("ES", make())
    assert Catalog(tmp_path).symbols() == []
    assert find_catalog(tmp_path, "ES") is None
    price = np.full(10, 5000.0)
    Catalog(tmp_path).write("ES", Bars(START + np.arange(10) * 60 * SECOND_NS, price, price, price, price, price,
                                       60 * SECOND_NS))
    assert Catalog(tmp_path).symbols() == TickCatalog(tmp_path).symbols() == ["ES"]
    assert len(Catalog(tmp_path).read("ES")) == 10
    assert len(TickCatalog(tmp_path).read("ES")) == 1000


def test_damage_is_named(tmp_path: Path) -> None:
    catalog = TickCatalog(tmp_path)
    with pytest.raises(InputError, match="does not hold ticks of ES"):
        catalog.read("ES")
    catalog.write("ES", make())
    day = tmp_path / "ES.ticks" / "2024-03-04.parquet"
    whole = day.read_bytes()
    day.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"2024-03-04\.parquet: not a readable Parquet"):
        catalog.read("ES")
    day.unlink()
    with pytest.raises(InputError, match="a day of the catalog is missing"):
        catalog.read("ES")
    (tmp_path / "ES.ticks" / "ticks.json").write_text("{}")
    with pytest.raises(InputError, match="not a manifest"):
        catalog.read("ES")


def test_a_failing_write_leaves_the_old_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = TickCatalog(tmp_path)
    catalog.write("ES", make())
    before = snapshot(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("algospace.marketdata.ticks.catalog.write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        catalog.write("ES", make(start=START + 10 * DAY_NS), source="later")
    assert snapshot(tmp_path) == before

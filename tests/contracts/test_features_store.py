"""A table read is the table written; anything else is refused in one line, and nothing is half-written."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import algospace.features as features
from algospace.errors import InputError, SchemaError
from algospace.features import FeatureConfig, MlmiConfig, build, read_table, schema_hash, write_table
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, Bars


def table_of(config: FeatureConfig):
    rng = np.random.default_rng(0)
    close = 4000 + np.cumsum(rng.normal(0, 2, 700))
    ts, volume = np.arange(700) * 5 * MINUTE_NS, np.full(700, np.nan)
    bars = Bars(ts, close, close + 1, close - 1, close, volume, 5 * MINUTE_NS)
    return build(bars, instrument("ES"), config)


@pytest.fixture(scope="module")
def table():
    return table_of(FeatureConfig())


def test_a_table_survives_the_round_trip_to_the_bit(table, tmp_path):
    write_table(table, tmp_path / "es.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["es.30m.parquet", "es.parquet"]
    again = read_table(tmp_path / "es.parquet", schema_hash(table))
    assert (again.symbol, again.config_digest) == ("ES", table.config_digest)
    assert schema_hash(again) == schema_hash(table)
    assert list(again.base) == list(table.base)
    assert list(again.slow) == list(table.slow)
    for name in ("ts_close", "filled", "contract", "ts_close_30m", "row_30m"):
        assert getattr(again, name).dtype == getattr(table, name).dtype
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    for name, column in table.base.items():
        np.testing.assert_array_equal(again.base[name].view(np.int64), column.view(np.int64))
    for name, column in table.slow.items():
        np.testing.assert_array_equal(again.slow[name].view(np.int64), column.view(np.int64))


def test_the_hash_tells_configurations_apart(table):
    others = [FeatureConfig(regime=False), FeatureConfig(mlmi=MlmiConfig(k=199)), FeatureConfig(source="close")]
    hashes = {schema_hash(table), *(schema_hash(table_of(config)) for config in others)}
    assert len(hashes) == 4


def test_a_table_of_another_schema_is_refused(table, tmp_path):
    write_table(table_of(FeatureConfig(source="close")), tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="differs from the expected"):
        read_table(tmp_path / "t.parquet", schema_hash(table))


def _rewrite(path, change):
    frame = pq.read_table(path)
    pq.write_table(change(frame), path)


def test_a_changed_column_or_record_is_refused(table, tmp_path):
    path = tmp_path / "t.parquet"
    write_table(table, path)
    _rewrite(path, lambda t: t.drop_columns(["fvg_age"]))
    with pytest.raises(SchemaError, match="is not the recorded"):
        read_table(path)
    write_table(table, path)
    names = ["x" if name == "fvg_age" else name for name in pq.read_schema(path).names]
    _rewrite(path, lambda t: t.rename_columns(names).replace_schema_metadata(t.schema.metadata))
    with pytest.raises(SchemaError, match="is not the recorded"):
        read_table(path)


def test_files_that_do_not_belong_together_are_refused(table, tmp_path):
    write_table(table, tmp_path / "a.parquet")
    write_table(table_of(FeatureConfig(source="close")), tmp_path / "b.parquet")
    (tmp_path / "a.30m.parquet").write_bytes((tmp_path / "b.30m.parquet").read_bytes())
    with pytest.raises(InputError, match="does not belong"):
        read_table(tmp_path / "a.parquet")


def test_missing_truncated_and_foreign_files_are_refused_in_one_line(table, tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(InputError, match="no such file"):
        read_table(path)
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path)
    write_table(table, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable Parquet file") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    for metadata in ({}, {"algospace": "{"}, {"algospace": "{}"}, {"algospace": "[]"}):
        pq.write_table(pa.table({"close": [1.0]}).replace_schema_metadata(metadata), path)
        with pytest.raises(SchemaError, match="not a feature table"):
            read_table(path)


def test_a_failed_write_leaves_the_old_files(table, tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(table, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError, match="no space"):
        write_table(table, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_public_names_are_these():
    assert sorted(features.__all__) == [
        "FeatureConfig", "FeatureRow", "FeatureStream", "FeatureTable", "FvgConfig", "Indicator", "MlmiConfig",
        "NwrqkConfig", "SourceBar", "SynergyConfig", "build", "build_from_ticks", "concatenate", "read_table",
        "schema_hash", "write_table",
    ]  # fmt: skip
    assert all(hasattr(features, name) for name in features.__all__)

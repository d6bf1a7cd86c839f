"""Matrices: scaling rules, statistics of the training split only, decision rows, stream equal to batch, files."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algospace.errors import ConfigError, InputError, SchemaError
from algospace.features.columns import base_columns, slow_columns
from algospace.features.market_table import ARRAYS, MarketTable
from algospace.features.matrices import MatrixAssembler, MatrixConfig, MatrixSchema, Normaliser, assemble
from algospace.features.matrix_schema import COLUMN_RULES, TWINS, MatrixSpec
from algospace.features.table import FeatureTable
from algospace.instruments import instrument
from algospace.types import BASE_BAR_NS, DAY_NS, SLOW_BAR_NS

NQ = instrument("NQ")
SMALL = MatrixConfig(strategic_window=4, tactical_window=5, regime_window=7, tactical_extra=("return_1",))
START = 20_000 * DAY_NS


def random_table(seed: int = 0, slow_rows: int = 60, warm_base: int = 8, warm_slow: int = 3) -> FeatureTable:
    """A feature table of noise with the shape of a real one: 6 base rows to a 30-minute row."""
    rng = np.random.default_rng(seed)
    n = 6 * slow_rows

    def columns(names: tuple[str, ...], rows: int, warm_up: int) -> dict[str, np.ndarray]:
        table = {name: rng.normal(1.0, 2.0, rows) for name in names}
        for name in ("fvg_bull_active", "fvg_bear_active", "synergy_type"):
            if name in table:
                table[name] = (rng.random(rows) < 0.2).astype(float)
        for name in (x for x in table if x.endswith("_ratio") or x in ("fvg_age", "atr_5m", "atr_30m")):
            table[name] = rng.lognormal(1.0, 0.5, rows)
        for name in ("open", "high", "low", "close", "nwrqk_value", "fvg_nearest_level"):
            if name in table:
                table[name] = 5000.0 + rng.normal(0.0, 3.0, rows)
        for name in (x for x in table if x not in ("open", "high", "low", "close", "roll_factor", "filled")):
            if not name.startswith(("hour", "weekday", "synergy")):
                table[name][:warm_up] = np.nan
        table["roll_factor"] = np.where(np.arange(rows) < rows // 2, 1.0, 1.01)
        table["filled"] = (rng.random(rows) < 0.05).astype(float)
        return table

    base = columns(base_columns(True), n, warm_base)
    row_30m = ((np.arange(n) + 1) // 6 - 1).astype(np.int32)
    ts = START + np.arange(1, n + 1) * BASE_BAR_NS
    return FeatureTable("NQ", ts, base["filled"] != 0, np.zeros(n, np.int32), base,
                        START + np.arange(1, slow_rows + 1) * SLOW_BAR_NS,
                        columns(slow_columns(True), slow_rows, warm_slow), row_30m, "abc")


@pytest.fixture(scope="module")
def table() -> FeatureTable:
    return random_table()


@pytest.fixture(scope="module")
def schema(table: FeatureTable) -> MatrixSchema:
    return Normaliser.fit(table, SMALL, int(table.ts_close[200]))


@pytest.fixture(scope="module")
def market(table: FeatureTable, schema: MatrixSchema) -> MarketTable:
    return assemble(table, schema, NQ)


def test_shapes_and_default_columns() -> None:
    config = MatrixConfig()
    assert (len(config.strategic), len(config.tactical), len(config.regime)) == (8, 7, 12)
    assert (config.strategic_window, config.tactical_window, config.regime_window) == (48, 60, 96)


def test_scaling_follows_the_rules(table: FeatureTable, schema: MatrixSchema, market: MarketTable) -> None:
    for matrix, rows, atr, columns in ((market.tactical, schema.tactical, "atr_5m", table.base),
                                       (market.strategic, schema.strategic, "atr_30m", table.slow),
                                       (market.regime, schema.regime, "atr_30m", table.slow)):
        for c, spec in enumerate(rows.columns):
            x = columns[spec.name]
            expected = {
                "level": (x - columns["close"]) / columns[atr], "difference": x / columns[atr],
                "mlmi": (x - 50) / 50, "age": np.exp(-x / 10), "ratio": np.log1p(np.maximum(x, 0)), "flag": x,
                "robust": np.clip((x - spec.centre) / spec.scale, -5, 5),
            }[spec.kind]
            done = np.isfinite(np.column_stack([columns[name] for name in (*rows.names, atr)])).all(axis=1)
            np.testing.assert_allclose(matrix[done, c], expected[done], rtol=2e-7, atol=1e-6, err_msg=spec.name)
            assert not matrix[~done].any()


def test_statistics_come_from_the_training_split_only(table: FeatureTable, schema: MatrixSchema) -> None:
    later = np.arange(len(table)) > 200
    base = {name: np.where(later, 1e3 * column, column) for name, column in table.base.items()}
    slow = {name: np.where(table.ts_close_30m > table.ts_close[200], -column, column)
            for name, column in table.slow.items()}
    assert Normaliser.fit(replace(table, base=base, slow=slow), SMALL, int(table.ts_close[200])) == schema


def test_robust_statistics(table: FeatureTable, schema: MatrixSchema) -> None:
    seen = table.slow["volatility_30"][3:33]
    spec = next(c for c in schema.regime.columns if c.name == "volatility_30")
    assert spec.centre == np.median(seen)
    assert spec.scale == pytest.approx(1.4826 * np.median(np.abs(seen - np.median(seen))), rel=1e-5)


def test_constant_and_mostly_equal_columns_have_a_usable_scale(table: FeatureTable) -> None:
    slow = {**table.slow, "logsig_1": np.ones(60), "mmd_score": np.where(np.arange(60) % 4 == 0, 0.5, 0.0)}
    schema = Normaliser.fit(replace(table, slow=slow), SMALL, int(table.ts_close[-1]))
    specs = {c.name: c for c in schema.regime.columns}
    assert (specs["logsig_1"].centre, specs["logsig_1"].scale) == (1.0, 1.0)
    assert specs["mmd_score"].scale == pytest.approx(0.25)


def test_odd_columns_are_centred_at_zero_and_twins_trade_places(schema: MatrixSchema) -> None:
    for matrix in (schema.strategic, schema.tactical, schema.regime):
        assert all(c.centre == 0.0 for c in matrix.columns if c.sign == -1)
        assert (matrix.mirror[matrix.mirror] == np.arange(matrix.width)).all()
    names = schema.tactical.names
    assert names[schema.tactical.mirror[names.index("fvg_bull_active")]] == "fvg_bear_active"


def test_mirroring_commutes_with_scaling(table: FeatureTable, schema: MatrixSchema, market: MarketTable) -> None:
    def mirrored(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = {}
        for name in columns:
            kind, sign = COLUMN_RULES.get(name, ("", 1))
            image = columns[TWINS.get(name, name)]
            if kind == "level":
                result[name] = 2 * columns["close"] - image
            elif kind == "mlmi":
                result[name] = 100 - image
            else:
                result[name] = sign * image
        return result

    other = assemble(replace(table, base=mirrored(table.base), slow=mirrored(table.slow)), schema, NQ)

    def image(matrix: np.ndarray, spec: MatrixSpec) -> np.ndarray:
        return matrix[:, spec.mirror] * spec.sign

    np.testing.assert_allclose(other.tactical, image(market.tactical, schema.tactical), atol=1e-5)
    np.testing.assert_allclose(other.strategic, image(market.strategic, schema.strategic), atol=1e-5)
    np.testing.assert_allclose(other.regime, image(market.regime, schema.regime), atol=1e-5)


@given(seed=st.integers(0, 1000), holes=st.lists(st.integers(0, 359), max_size=5))
@settings(max_examples=20, deadline=None)
def test_decisions_need_a_real_bar_and_complete_windows(seed: int, holes: list[int]) -> None:
    table = random_table(seed)
    table.base["volatility_60"][holes] = np.nan  # not part of the matrices
    table.base["volume_ratio"][holes] = np.nan
    table.slow["lvn_strength"][[h // 6 for h in holes]] = np.nan
    schema = Normaliser.fit(table, SMALL, int(table.ts_close[-1]))
    market = assemble(table, schema, NQ)
    for i in range(len(table)):
        k = int(table.row_30m[i])
        expected = (not table.filled[i] and i >= 4 and k >= 6
                    and all(np.isfinite(table.base[name][i - 4:i + 1]).all() for name in schema.tactical.names)
                    and all(np.isfinite(table.slow[name][k - 3:k + 1]).all() for name in schema.strategic.names)
                    and all(np.isfinite(table.slow[name][k - 6:k + 1]).all() for name in schema.regime.names))
        assert market.decision[i] == expected, i
    assert np.isfinite(market.tactical).all()
    np.testing.assert_array_equal(market.filled, table.filled)


def test_stream_equals_batch_to_the_bit(table: FeatureTable, schema: MatrixSchema, market: MarketTable) -> None:
    assembler = MatrixAssembler(schema, NQ, tuple(table.base), tuple(table.slow))
    base = np.stack(list(table.base.values()), axis=1)
    slow = np.stack(list(table.slow.values()), axis=1)
    seen = -1
    for i in range(len(table)):
        if table.row_30m[i] > seen:
            seen = int(table.row_30m[i])
            strategic, regime = assembler.push_slow(slow[seen])
            np.testing.assert_array_equal(strategic, market.strategic[seen])
            np.testing.assert_array_equal(regime, market.regime[seen])
        np.testing.assert_array_equal(assembler.push_base(base[i]), market.tactical[i])
        assert assembler.decision == market.decision[i]
        if assembler.decision:
            np.testing.assert_array_equal(assembler.tactical, market.tactical[i - 4:i + 1])
            np.testing.assert_array_equal(assembler.strategic, market.strategic[seen - 3:seen + 1])
            np.testing.assert_array_equal(assembler.regime, market.regime[seen - 6:seen + 1])
    assert market.decision.sum() > 100


def test_raw_prices_roll_day_and_synergy(table: FeatureTable, market: MarketTable) -> None:
    i = len(table) // 2  # first row of the new contract
    assert market.roll[i] == pytest.approx(1 / 1.01)
    assert (np.delete(market.roll, i) == 1.0).all()
    np.testing.assert_allclose(market.close * table.base["roll_factor"], table.base["close"])
    np.testing.assert_allclose(market.atr_30m[-1], table.base["atr_30m"][-1] / 1.01)
    assert market.synergy_event.sum() == (table.base["synergy_type"] > 0).sum()
    # 17:00 Chicago is 22:00 UTC in October 2024: the bar that closes there is the day's last.
    hour = (table.ts_close % DAY_NS) / 3.6e12
    assert set(market.day[hour <= 22.0]) == {20_000, 20_001}
    assert market.day[np.flatnonzero(hour == 22.0)[0]] == 20_000
    assert market.day[np.flatnonzero(hour == 22.0)[0] + 1] == 20_001


def test_a_market_without_range_is_measured_in_ticks(table: FeatureTable, schema: MatrixSchema) -> None:
    base = {**table.base, "atr_5m": np.zeros(len(table))}
    market = assemble(replace(table, base=base), schema, NQ)
    level = schema.tactical.names.index("fvg_nearest_level")
    expected = np.clip((base["fvg_nearest_level"] - base["close"]) / 0.25, -50, 50)
    np.testing.assert_allclose(market.tactical[8:, level], expected[8:], rtol=1e-6, atol=1e-6)


def test_saved_and_mapped_it_is_the_same(market: MarketTable, schema: MatrixSchema, tmp_path) -> None:
    market.save(tmp_path / "table")
    for mmap in (True, False):
        loaded = MarketTable.load(tmp_path / "table", mmap=mmap, schema=schema)
        assert loaded.schema == schema
        assert loaded.symbol == "NQ"
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(loaded, name), getattr(market, name))
            assert getattr(loaded, name).dtype == getattr(market, name).dtype
    assert isinstance(MarketTable.load(tmp_path / "table").tactical, np.memmap)
    assert loaded.first_decision == np.flatnonzero(market.decision)[0]


def test_a_changed_byte_or_missing_file_is_refused(market: MarketTable, tmp_path) -> None:
    market.save(tmp_path / "table")
    path = tmp_path / "table" / "close.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="checksum"):
        MarketTable.load(tmp_path / "table")
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        MarketTable.load(tmp_path / "table")
    with pytest.raises(InputError, match="no market table here"):
        MarketTable.load(tmp_path / "elsewhere")
    (tmp_path / "table" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        MarketTable.load(tmp_path / "table")


def test_another_schema_is_refused_and_the_difference_named(market: MarketTable, schema: MatrixSchema, tmp_path
                                                            ) -> None:
    market.save(tmp_path / "table")
    wider = replace(schema, tactical=replace(schema.tactical, window=9))
    with pytest.raises(SchemaError, match="tactical window 5 instead of 9"):
        MarketTable.load(tmp_path / "table", schema=wider)
    manifest = tmp_path / "table" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["schema"]["clip"] = 6.0
    manifest.write_text(json.dumps(values))
    with pytest.raises(SchemaError, match="changed after it was written"):
        MarketTable.load(tmp_path / "table")


def test_schema_survives_json_and_its_digest_sees_every_value(schema: MatrixSchema) -> None:
    again = MatrixSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert again.digest() == schema.digest()
    others = [replace(schema, clip=4.0), replace(schema, features="x"),
              replace(schema, regime=replace(schema.regime, columns=schema.regime.columns[::-1]))]
    first = schema.strategic.columns[5]
    for field in fields(first):
        value = getattr(first, field.name)
        changed = replace(first, **{field.name: value + "x" if isinstance(value, str) else value + 1})
        columns = (*schema.strategic.columns[:5], changed, *schema.strategic.columns[6:])
        others.append(replace(schema, strategic=replace(schema.strategic, columns=columns)))
    assert len({other.digest() for other in (schema, *others)}) == len(others) + 1
    with pytest.raises(SchemaError, match="not a matrix schema"):
        MatrixSchema.from_dict({"clip": 5.0})


def test_tables_that_do_not_fit_the_schema_are_refused(table: FeatureTable, schema: MatrixSchema) -> None:
    with pytest.raises(SchemaError, match="given with ES"):
        assemble(table, schema, instrument("ES"))
    with pytest.raises(SchemaError, match="configuration other"):
        assemble(replace(table, config_digest="other"), schema, NQ)
    slow = {name: column for name, column in table.slow.items() if name != "logsig_1"}
    with pytest.raises(ConfigError, match="no column 'logsig_1'"):
        assemble(replace(table, slow=slow), schema, NQ)
    with pytest.raises(ConfigError, match="no value in the training split"):
        Normaliser.fit(table, SMALL, START)
    with pytest.raises(SchemaError, match="no column 'close'"):
        MatrixAssembler(schema, NQ, tuple(x for x in table.base if x != "close"), tuple(table.slow))


@pytest.mark.parametrize(("values", "message"), [
    ({"strategic": ("mlmi_valu",)}, "unknown column 'mlmi_valu'"),
    ({"tactical": ("fvg_age", "fvg_age")}, "named twice"),
    ({"tactical": ("fvg_bull_active",)}, "needs its twin"),
    ({"tactical_extra": ("close",)}, "return_1"),
    ({"regime_window": 0}, "greater than or equal to 1"),
])
def test_configuration_faults_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MatrixConfig(**values)


def test_without_regime_columns_the_matrix_is_empty(table: FeatureTable) -> None:
    config = SMALL.model_copy(update={"regime": ()})
    market = assemble(table, Normaliser.fit(table, config, int(table.ts_close[-1])), NQ)
    assert market.regime.shape == (60, 0)
    assert market.decision.any()

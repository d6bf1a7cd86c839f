"""Planning of jobs, the engines' registry, and failures that stay with their instrument."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from algospace.errors import ConfigError, InputError
from algospace.features import FeatureConfig, build, read_table
from algospace.features.blocks import Block, FeatureJob
from algospace.features.engines import build_file, failures, find_engine, plan_jobs, run_jobs
from algospace.marketdata.schema import bars_to_table
from algospace.marketdata.synthetic import generate, write_market
from tests.scale_market import SYNTH, assert_same, rolling_bars, write_catalog

LEAN = FeatureConfig(regime=False)
FEW = rolling_bars().slice(0, 9_000)


def _places(jobs: list[FeatureJob]) -> list[tuple[str, str, str]]:
    return [(job.name, job.instrument.symbol, job.source.name) for job in jobs]


def test_all_instruments_of_a_catalog(tmp_path: Path) -> None:
    for symbol in ("NQ", "ES"):
        write_catalog(tmp_path / "catalog", FEW, symbol)
    template = FeatureJob("", SYNTH, Path(), Path(), LEAN)
    jobs = plan_jobs(tmp_path / "catalog", "all", tmp_path / "out", template)
    assert _places(jobs) == [("ES", "ES", "catalog"), ("NQ", "NQ", "catalog")]
    assert [job.out for job in jobs] == [tmp_path / "out" / "ES", tmp_path / "out" / "NQ"]
    assert all(job.config == LEAN for job in jobs)
    assert _places(plan_jobs(tmp_path / "catalog", "nq,NQ", tmp_path)) == [("NQ", "NQ", "catalog")]
    reports = run_jobs(jobs)
    assert not failures(reports)
    assert len({report.rows for report in reports}) == 1


def test_a_folder_with_an_entry_for_each_instrument(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "ES").mkdir(parents=True)
    for path in (source / "NQ.parquet", source / "ES" / "bars.parquet"):
        pq.write_table(bars_to_table(FEW), path)
    write_market(generate("session", 3, 2_000), source / "session-3")
    (source / "notes").mkdir()
    (source / "notes" / "manifest.json").write_text("[]")
    found = [("ES", "ES", "ES"), ("NQ", "NQ", "NQ.parquet"), ("session-3", "SYNTH", "session-3")]
    assert _places(plan_jobs(source, "all", tmp_path)) == found
    assert _places(plan_jobs(source, "NQ,ES", tmp_path)) == [found[1], found[0]]
    assert _places(plan_jobs(source / "NQ.parquet", "RTY", tmp_path)) == [("RTY", "RTY", "NQ.parquet")]
    assert not failures(run_jobs(plan_jobs(source, "all", tmp_path / "out")))
    with pytest.raises(InputError, match="no catalog, and no entry named after RTY"):
        plan_jobs(source, "NQ,RTY", tmp_path)
    with pytest.raises(InputError, match="no instruments to be told by their names"):
        plan_jobs(source / "notes", "all", tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        plan_jobs(source / "absent", "all", tmp_path)
    with pytest.raises(ConfigError, match="unknown instrument 'XYZ'"):
        plan_jobs(source / "NQ.parquet", "XYZ", tmp_path)
    with pytest.raises(ConfigError, match="name at least one"):
        plan_jobs(source, " , ", tmp_path)


def test_a_failed_instrument_is_one_line_and_the_others_are_done(tmp_path: Path) -> None:
    good = FeatureJob("good", SYNTH, write_catalog(tmp_path / "good", FEW), tmp_path / "out" / "good", LEAN)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 but not really")
    bad = replace(good, name="bad", source=broken, out=tmp_path / "out" / "bad")
    told: list[Block] = []
    reports = run_jobs([bad, good], "local", told.append)
    lines = failures(reports)
    assert len(lines) == 1
    assert lines[0].startswith("bad: ")
    assert "broken.parquet" in lines[0]
    assert "\n" not in lines[0]
    assert reports[1].rows == json.loads((good.out / "blocks.json").read_text())["blocks"][0]["rows"] + sum(
        block.rows for block in told[1:])
    assert {block.name for block in told} == {"good"}


def test_one_instrument_into_one_file(tmp_path: Path) -> None:
    job = FeatureJob("one", SYNTH, write_catalog(tmp_path / "catalog", FEW), Path(), LEAN)
    report, figures = build_file(job, tmp_path / "out.parquet")
    assert_same(read_table(tmp_path / "out.parquet", figures["schema"]), build(FEW, SYNTH, LEAN))
    assert (report.error, figures["rows"], (tmp_path / "out.blocks").exists()) == (None, report.rows, False)
    failed, figures = build_file(replace(job, source=tmp_path / "absent"), tmp_path / "other.parquet")
    assert (failed.error is None, figures, (tmp_path / "other.parquet").exists()) == (False, {}, False)


def test_jobs_must_not_share_a_name_or_a_folder(tmp_path: Path) -> None:
    job = FeatureJob("one", SYNTH, tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="two jobs have the name 'one'"):
        run_jobs([job, replace(job, out=tmp_path / "other")])
    with pytest.raises(ConfigError, match="two jobs have the folder"):
        run_jobs([job, replace(job, name="two")])


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--engine dask: no such engine is installed \(there is: local"):
        find_engine("dask")

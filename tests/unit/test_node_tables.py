"""A table reaches a node that lacks it once, verified by hash; damage is found, whoever caused it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from algospace.errors import ConfigError, SchemaError
from tests.training_market import MarketOnDisk
from training.mappo import node_tables
from training.mappo.node_tables import FolderSource, node_table, shared_arrays
from training.mappo.tables import TableTensors, doubled_arrays, open_training_table

ABSENT = ("/absent/market", "/absent/experts")


class CountingSource(FolderSource):
    """Writes a line for every chunk that is asked for, from whatever process."""

    def __init__(self, market: Path, experts: Path, log: Path, damage: str = "") -> None:
        super().__init__(str(market), str(experts))
        self._log, self._damage = log, damage

    def chunk(self, name: str, offset: int) -> bytes:
        with self._log.open("a") as stream:
            stream.write(f"{os.getpid()} {name} {offset}\n")
        data = super().chunk(name, offset)
        return data[:-1] + b"~" if self._damage == name and data else data


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another node: a cache folder of its own."""
    monkeypatch.setenv(node_tables.CACHE_VARIABLE, str(tmp_path / "node"))
    return tmp_path / "node" / "tables"


def source(market: MarketOnDisk, tmp_path: Path, damage: str = "") -> CountingSource:
    return CountingSource(market.market, market.experts, tmp_path / "chunks.log", damage)


def test_on_the_drivers_node_the_table_is_used_in_place(training_market: MarketOnDisk, cache: Path) -> None:
    here = (str(training_market.market), str(training_market.experts))
    assert node_table(*here, training_market.digest) == here
    assert not cache.exists()


def test_another_node_fetches_once_and_opens_the_same_table(training_market: MarketOnDisk, cache: Path,
                                                            tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                            ) -> None:
    monkeypatch.setattr(node_tables, "CHUNK_BYTES", 100_000)  # several chunks per file
    digest = training_market.digest
    places = node_table(*ABSENT, digest, source(training_market, tmp_path))
    chunks = (tmp_path / "chunks.log").read_text()
    assert node_table(*ABSENT, digest, source(training_market, tmp_path)) == places
    assert (tmp_path / "chunks.log").read_text() == chunks  # nothing is fetched twice
    assert max(int(line.split()[2]) for line in chunks.splitlines()) > 100_000
    copied = open_training_table(*places, digest)
    original = open_training_table(training_market.market, training_market.experts, digest)
    for name, values in doubled_arrays(original).items():
        np.testing.assert_array_equal(doubled_arrays(copied)[name], values)
    np.testing.assert_array_equal(copied.proposals, original.proposals)


def test_a_folder_of_another_run_at_the_same_place_is_not_taken_for_the_table(
        training_market: MarketOnDisk, cache: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    for name in ("market", "experts"):
        shutil.copytree(getattr(training_market, name), older / name)
    np.save(older / "experts" / "proposals.npy", np.zeros(3, np.float32))
    (older / "experts" / "experts.json").write_text('{"market": "", "files": {}}')
    there = (str(older / "market"), str(older / "experts"))
    fetched = node_table(*there, training_market.digest, source(training_market, tmp_path))
    assert fetched != there
    open_training_table(*fetched, training_market.digest)
    with pytest.raises(SchemaError, match="differ from those the run was started with"):  # nobody offers another
        open_training_table(*node_table(*there, training_market.digest), training_market.digest)


def test_what_a_killed_copy_left_goes_with_the_next_one(training_market: MarketOnDisk, cache: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> None:
        monkeypatch.setattr(node_tables, "_verify", lambda *_: os._exit(9))
        _fetch(training_market, tmp_path)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".part"]
    _fetch(training_market, tmp_path)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [training_market.digest]


def _fetch(market: MarketOnDisk, folder: Path) -> None:
    node_table(*ABSENT, market.digest, source(market, folder))


def test_processes_of_one_node_copy_it_once(training_market: MarketOnDisk, cache: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_fetch, args=(training_market, tmp_path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    lines = (tmp_path / "chunks.log").read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == 1
    assert (cache / training_market.digest / "complete.json").is_file()


@pytest.mark.parametrize("name", ["market/close.npy", "market/manifest.json", "experts/experts.json",
                                  "experts/proposals.npy"])
def test_what_arrives_changed_is_refused_and_leaves_nothing(training_market: MarketOnDisk, cache: Path,
                                                            tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemaError, match=f"{name}.*arrived changed|not readable"):
        node_table(*ABSENT, training_market.digest, source(training_market, tmp_path, damage=name))
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_a_damaged_copy_is_fetched_again(training_market: MarketOnDisk, cache: Path, tmp_path: Path) -> None:
    market, _ = node_table(*ABSENT, training_market.digest, source(training_market, tmp_path))
    column = Path(market) / "tactical.npy"
    whole = column.read_bytes()
    column.write_bytes(whole[:-4])
    node_table(*ABSENT, training_market.digest, source(training_market, tmp_path))
    assert column.read_bytes() == whole


def test_without_a_source_the_message_says_what_to_do(cache: Path) -> None:
    with pytest.raises(ConfigError, match="give a path that exists here"):
        node_table(*ABSENT, "0" * 64)


def test_derived_arrays_are_made_once_and_mapped(training_market: MarketOnDisk, cache: Path) -> None:
    table = open_training_table(training_market.market, training_market.experts)
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return doubled_arrays(table)

    first = shared_arrays(training_market.digest, "doubled", make)
    second = shared_arrays(training_market.digest, "doubled", make)
    assert len(calls) == 1
    mapped, plain = TableTensors(table, second), TableTensors(table)
    for name in ("tactical", "strategic", "regime", "synergy", "row_30m"):
        assert isinstance(first[name], np.memmap)
        assert bool((getattr(mapped, name) == getattr(plain, name)).all())
    first["tactical"][0] = 7.0  # a writer changes its own copy only
    assert (shared_arrays(training_market.digest, "doubled", make)["tactical"][0] != 7.0).all()


def test_the_cache_keeps_the_folders_used_last(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_tables, "KEPT", 2)
    for number in range(3):
        shared_arrays(str(number), "k", lambda: {"x": np.zeros(3)})
        time.sleep(0.01)
        if number == 1:
            shared_arrays("0", "k", lambda: {"x": np.ones(3)})  # used again: number 1 is now the oldest
            time.sleep(0.01)
    kept = sorted(path.name for path in cache.iterdir() if path.is_dir())
    assert [name.rsplit(".", 1)[0] for name in kept] == ["0.k", "2.k"]
    shutil.rmtree(cache)

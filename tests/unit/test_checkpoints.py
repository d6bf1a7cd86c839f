"""Checkpoints survive crashes, full disks and torn writes; values that are no numbers are named."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algospace.errors import SchemaError
from tests.training_market import MarketOnDisk
from training.checkpoints import CheckpointWarning, last_checkpoint, save_checkpoint
from training.interruption import Interruption
from training.mappo import finite
from training.mappo.finite import (
    NonFiniteError,
    first_nonfinite_parameter,
    refuse_nonfinite_table,
    require_finite_rewards,
)
from training.mappo.tables import TrainingTable, open_training_table


def write(content: str, error: OSError | None = None):
    def fill(path: Path) -> None:
        path.mkdir(parents=True)
        (path / "state.pkl").write_text(content)
        if error is not None:
            raise error
    return fill


def save(folder: Path, iterations: int, error: OSError | None = None) -> bool:
    return save_checkpoint(folder, [{"x": float(i)} for i in range(iterations)], write(f"at {iterations}", error))


def content(folder: Path) -> str:
    found = last_checkpoint(folder)
    assert found is not None
    return (found.rllib / "state.pkl").read_text()


def test_the_newest_is_found_and_two_are_kept(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "absent") is None
    for iterations in (1, 2, 3, 10):
        assert save(tmp_path, iterations)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003", "000010"]
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert len(found.history) == 10
    assert content(tmp_path) == "at 10"


def test_a_full_disk_leaves_the_checkpoint_before_and_no_litter(tmp_path: Path) -> None:
    save(tmp_path, 1)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.warns(CheckpointWarning, match="No space left on device.*000001 is intact"):
        assert not save(tmp_path, 2, full)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    assert content(tmp_path) == "at 1"
    assert save(tmp_path, 3)


def test_an_unfinished_folder_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".000002.abc.part").mkdir()  # killed while writing
    assert content(tmp_path) == "at 1"


@pytest.mark.parametrize("damage", ["shortened", "lost", "list"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    state = tmp_path / "000002" / "rllib" / "state.pkl"
    if damage == "shortened":
        state.write_text("a")
    elif damage == "lost":
        state.unlink()
    else:
        (tmp_path / "000002" / "files.json").write_text("{")
    with pytest.warns(CheckpointWarning, match="000002"):
        assert content(tmp_path) == "at 1"


def test_what_is_damaged_or_unfinished_takes_no_good_checkpoints_place(tmp_path: Path) -> None:
    for iterations in (2, 4, 6):
        save(tmp_path, iterations)
    (tmp_path / "000006" / "rllib" / "state.pkl").write_text("torn")
    (tmp_path / ".000007.abc.part").mkdir()  # killed while writing, again and again on a spot machine
    with pytest.warns(CheckpointWarning, match="000006"):
        assert content(tmp_path) == "at 4"
    save(tmp_path, 5)  # the run that went on from there is ended early
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000004", "000005"]


def test_both_signals_are_noted_and_the_second_interrupt_is_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        interruption.obey()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            interruption.obey()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture(scope="module")
def table(training_market: MarketOnDisk) -> TrainingTable:
    return open_training_table(training_market.market, training_market.experts)


def test_a_clean_table_passes(table: TrainingTable) -> None:
    refuse_nonfinite_table(table, "market")


@pytest.mark.parametrize(("name", "column", "said"), [
    ("close", None, "'close'"), ("atr", None, "'atr'"), ("tactical", 2, "'{}' of tactical"),
    ("strategic", 1, "'{}' of strategic"), ("synergy", 0, "'synergy'")])
def test_nan_in_a_table_is_refused_with_column_and_row(table: TrainingTable, name: str, column: int | None,
                                                       said: str) -> None:
    values = np.array(getattr(table.market, name))
    row = len(values) - 7
    values[row if column is None else (row, column)] = np.nan if name != "synergy" else np.inf
    if "{}" in said:
        said = said.format(getattr(table.market.schema, name).names[column])
    broken = TrainingTable(dataclasses.replace(table.market, **{name: values}), table.regime_vectors,
                           table.proposals)
    with pytest.raises(SchemaError, match=f"market: column {said}, row {row} is (nan|inf)"):
        refuse_nonfinite_table(broken, "market")


def test_nan_in_the_experts_columns_is_refused(table: TrainingTable) -> None:
    proposals = np.array(table.proposals)
    proposals[123, 1, 2] = np.inf
    with pytest.raises(SchemaError, match="'proposals', row 123 is inf"):
        refuse_nonfinite_table(TrainingTable(table.market, table.regime_vectors, proposals), "market")


@given(st.lists(st.sampled_from([1.0, 2.0, math.nan, math.inf]), min_size=1, max_size=20), st.booleans())
def test_a_table_is_searched_block_by_block_as_in_one_piece(values: list[float], late: bool) -> None:
    """`late`: the column's leading NaN are allowed, however many blocks they fill."""
    begin = next((row for row, x in enumerate(values) if math.isfinite(x)), len(values)) if late else 0
    expected = next(((row, 0) for row, x in enumerate(values) if row >= begin and not math.isfinite(x)), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite, "_BLOCK", 4)
        assert finite._first_nonfinite(np.array(values), late) == expected


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_reward_that_is_no_number_names_environment_and_row(value: float) -> None:
    columns = {"rewards": np.zeros((3, 4), np.float32), "rows": np.arange(12).reshape(3, 4) + 100}
    require_finite_rewards(columns)
    columns["rewards"][2, 1] = value
    with pytest.raises(NonFiniteError, match=rf"environment 2 at table row 109.*is {value}"):
        require_finite_rewards(columns)


def test_a_gradient_that_is_no_number_names_its_parameter() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    net(torch.ones(1, 2)).sum().backward()
    assert first_nonfinite_parameter(net.named_parameters()) is None
    net[1].weight.grad[0, 1] = torch.inf
    assert first_nonfinite_parameter(net.named_parameters()) == "gradient of 1.weight"
    net[0].bias.data[0] = torch.nan
    assert first_nonfinite_parameter(net.named_parameters()) == "value of 0.bias"

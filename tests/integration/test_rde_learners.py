"""The regime engine trains on remote learners (DDP) as it does in this process, up to rounding."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from rich.console import Console

from agents.settings import RegimeConfig
from algospace.config import load_config
from tests.conftest import REPOSITORY
from training import rde
from training.config import RunConfig
from training.pipeline import run_pipeline
from training.rde import train_rde

TINY = [
    "market.synthetic.train_bars=30000", "market.synthetic.validation_bars=12000",
    "market.synthetic.test_seeds=[9001]", "market.synthetic.test_bars=12000", "rde.size=tiny", "rde.epochs=1",
    "rde.windows_per_epoch=504", "rde.batch_size=126", "tracking.enabled=false"]


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_learners_agree_with_one_process_at_full_batch() -> None:
    torch.set_num_threads(1)
    rows = np.random.default_rng(0).standard_normal((400, 12)).astype(np.float32)
    config = RegimeConfig(size="tiny", epochs=3, batch_size=128, windows_per_epoch=128, free_bits=0.0)
    here, there = (train_rde(rows, (0, 250), (250, 400), config.model_copy(update={"num_learners": n}), 0)
                   for n in (0, 2))
    for name, value in here.net.state_dict().items():
        np.testing.assert_allclose(there.net.state_dict()[name].numpy(), value.numpy(), atol=1e-4)
    assert there.metrics["validation_loss"] == pytest.approx(here.metrics["validation_loss"], rel=1e-4)


@pytest.mark.slow
def test_the_phase_trains_on_the_configured_learners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than this machine's local Ray had processors for before it was told how many the run needs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sizes: list[int] = []
    make: Any = rde._learner_group

    def seen(*args: Any) -> Any:
        sizes.append(len(group) if (group := make(*args)).is_remote else 0)
        return group

    monkeypatch.setattr(rde, "_learner_group", seen)
    losses = []
    for learners in (0, 3):
        config = load_config(RunConfig, REPOSITORY / "configs" / "quickstart.yaml",
                             [*TINY, f"rde.num_learners={learners}"])
        result = run_pipeline(config, tmp_path / str(learners), ("rde",), Console(file=io.StringIO()))
        losses.append(result.phases["rde"]["metrics"]["validation_loss"])
    assert sizes == [0, 3]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)

"""The regime engine trains on remote learners (DDP) as it does in this process, up to rounding."""

from collections.abc import Iterator

import numpy as np
import pytest
import ray
import torch

from agents.settings import RegimeConfig
from training.rde import train_rde


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
    here, there = (train_rde(rows, (0, 250), (250, 400), config, 0, num_learners=n) for n in (0, 2))
    for name, value in here.net.state_dict().items():
        np.testing.assert_allclose(there.net.state_dict()[name].numpy(), value.numpy(), atol=1e-4)
    assert there.metrics["validation_loss"] == pytest.approx(here.metrics["validation_loss"], rel=1e-4)

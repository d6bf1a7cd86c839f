"""Threads of the driver share shards and segments: same batches, the same gradients but for rounding."""

from pathlib import Path

import pytest
import torch

from tests.integration.test_mappo_training import assert_equal_batches, assert_equal_weights, continued, trained
from tests.training_market import MarketOnDisk, small_settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("kind", ["core", "risk"])
def test_two_threads_agree_with_one(training_market: MarketOnDisk, kind: str) -> None:
    spec = training_market.core_spec() if kind == "core" else training_market.risk_spec()
    one, batches = trained(spec, small_settings(num_shards=2), 1)
    two, again = trained(spec, small_settings(num_shards=2, threads=2), 1)
    assert_equal_batches(batches, again)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-5, msg=name)


def test_threads_repeat_and_continue_bit_for_bit(training_market: MarketOnDisk, tmp_path: Path) -> None:
    spec = training_market.core_spec()
    settings = small_settings(num_shards=2, threads=2, overlap=True)
    whole, batches = trained(spec, settings, 4)
    assert_equal_weights(whole, continued(spec, settings, tmp_path))
    _, again = trained(spec, settings, 4)
    assert_equal_batches(batches, again)

"""Sampling beside the update is one update behind, and just as repeatable."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_mappo_training import assert_equal_batches, assert_equal_weights, continued, trained
from tests.training_market import MarketOnDisk, small_settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_overlapped_sampling_repeats_and_differs_from_the_plain_order(training_market: MarketOnDisk) -> None:
    spec = training_market.core_spec()
    plain, before = trained(spec, small_settings(), 3)
    first, batches = trained(spec, small_settings(overlap=True), 3)
    second, again = trained(spec, small_settings(overlap=True, num_env_runners=1), 3)
    assert_equal_weights(first, second)
    assert_equal_batches(batches[:3], again[:3])
    assert_equal_batches(batches[:1], before[:1])
    np.testing.assert_array_equal(batches[1]["rows"], before[1]["rows"])  # the market goes on alike
    assert (batches[1]["log_p"] != before[1]["log_p"]).any()              # the weights are one update older
    assert any((first[name] != plain[name]).any() for name in plain)


def test_an_interrupted_overlapped_run_continues_bit_for_bit(training_market: MarketOnDisk,
                                                             tmp_path: Path) -> None:
    spec, settings = training_market.core_spec(), small_settings(overlap=True)
    whole, _ = trained(spec, settings, 4)
    assert_equal_weights(whole, continued(spec, settings, tmp_path))

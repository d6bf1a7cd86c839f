"""The regime network: shapes, configuration, loss terms, ONNX parity."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from agents.regime import RegimeEncoder, RegimeNet, column_weights, gaussian_kl, recency_weights
from agents.settings import RegimeConfig
from algospace.config import parse_config
from algospace.errors import ConfigError


@pytest.fixture
def net() -> RegimeNet:
    torch.manual_seed(0)
    return RegimeNet(RegimeConfig(size="small")).eval()


def test_shapes(net: RegimeNet) -> None:
    window = torch.randn(5, 96, 12)
    output = net(window, torch.randn(5, 8))
    assert output.mean.shape == output.log_variance.shape == (5, 8)
    assert output.reconstruction.shape == (5, 96, 12)
    assert output.prediction.shape == (5, 4, 12)
    assert net.encode_mean(window).shape == (5, 8)


def test_the_full_size_builds_with_one_row_per_token() -> None:
    net = RegimeNet(RegimeConfig(size="full", patch=1))
    assert len(net.blocks) == 6
    assert net.encode_mean(torch.randn(2, 96, 12)).shape == (2, 8)


def test_prediction_can_be_turned_off() -> None:
    net = RegimeNet(RegimeConfig(size="tiny", predict_steps=0))
    total, parts = net.loss(torch.randn(3, 96, 12), torch.empty(3, 0, 12), 1e-3, torch.randn(3, 8))
    assert torch.isfinite(total)
    assert "prediction" not in parts


def test_loss_is_the_sum_of_its_parts_above_the_free_bits() -> None:
    config = RegimeConfig(size="tiny", free_bits=0.0, predict_weight=0.7)
    net = RegimeNet(config)
    window, target, noise = torch.randn(6, 96, 12), torch.randn(6, 4, 12), torch.randn(6, 8)
    total, parts = net.loss(window, target, 0.5, noise)
    expected = parts["reconstruction"] + 0.7 * parts["prediction"] + 0.5 * parts["kl"]
    torch.testing.assert_close(total, expected)


def test_recent_rows_weigh_more_and_equal_weights_are_the_plain_error() -> None:
    weights = recency_weights(96, 4.0)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[-1] / weights[-5] == pytest.approx(2.0)
    net = RegimeNet(RegimeConfig(size="tiny", recency_half_life=0, column_weights=(1.0,) * 12))
    window, noise = torch.randn(6, 96, 12), torch.randn(6, 8)
    _, parts = net.loss(window, torch.randn(6, 4, 12), 0.5, noise)
    plain = torch.nn.functional.mse_loss(net(window, noise).reconstruction, window)
    torch.testing.assert_close(parts["reconstruction"], plain)


def test_free_bits_stop_the_kl_gradient_of_a_dimension_below_them() -> None:
    net = RegimeNet(RegimeConfig(size="tiny", free_bits=1e6, predict_steps=0))
    window = torch.randn(4, 96, 12)
    total, _ = net.loss(window, torch.empty(4, 0, 12), 1.0, torch.zeros(4, 8))
    total.backward()
    gradient = net.latent_head.weight.grad
    assert gradient is not None
    assert torch.count_nonzero(gradient[8:]) == 0  # without noise and KL nothing reaches the log variance


def test_kl_of_the_prior_is_zero_and_matches_torch() -> None:
    assert gaussian_kl(torch.zeros(3), torch.zeros(3)).abs().max() == 0
    mean, log_variance = torch.tensor([0.3, -1.0]), torch.tensor([-0.5, 0.7])
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()),
        torch.distributions.Normal(torch.zeros(2), torch.ones(2)))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), reference)


def test_a_patch_that_does_not_divide_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch 7 must divide the window of 96 rows"):
        parse_config(RegimeConfig, {"patch": 7})


def test_learners_that_cannot_share_the_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_learners 3 must divide the batch_size of 128"):
        parse_config(RegimeConfig, {"num_learners": 3})


def test_quick_recipe_takes_overrides_and_refuses_unknown_keys() -> None:
    assert RegimeConfig.quick().size == "tiny"
    assert RegimeConfig.quick(size="small").size == "small"
    with pytest.raises(ValueError, match="extra"):
        RegimeConfig.quick(sise="tiny")


def test_onnx_equals_torch_for_any_batch(net: RegimeNet, tmp_path: Path) -> None:
    path = tmp_path / "regime.onnx"
    torch.onnx.export(
        RegimeEncoder(net).eval(), (torch.randn(2, 96, 12),), str(path), dynamo=True, verbose=False,
        input_names=["window"], output_names=["regime"],
        dynamic_shapes={"window": {0: torch.export.Dim("batch")}})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        window = torch.randn(batch, 96, 12)
        served = session.run(None, {"window": window.numpy()})[0]
        assert np.abs(served - net.encode_mean(window).detach().numpy()).max() <= 1e-5


def test_direction_and_volatility_weigh_most_and_other_columns_can_be_weighed() -> None:
    weights = column_weights(RegimeConfig())
    assert weights.mean() == pytest.approx(1.0)
    assert set(np.flatnonzero(weights > 1).tolist()) == {1, 2, 3, 6, 7, 8, 10}
    assert torch.equal(column_weights(RegimeConfig(features=5)), torch.ones(5))
    assert column_weights(RegimeConfig(features=2, column_weights=(3.0, 1.0))).tolist() == [1.5, 0.5]
    for wrong in ((1.0,) * 5, (0.0,) * 12, (-1.0,) * 12):
        with pytest.raises(ValueError, match="column_weights must be 12 numbers"):
            RegimeConfig(column_weights=wrong)


def test_units_of_a_column_do_not_matter_once_the_scale_is_set() -> None:
    """Columns in other units give the same vector, and the same loss."""
    torch.manual_seed(1)
    net = RegimeNet(RegimeConfig(size="tiny")).eval()
    window, target, noise = torch.randn(4, 96, 12), torch.randn(4, 4, 12), torch.randn(4, 8)
    centre, scale = torch.linspace(-1, 1, 12), torch.linspace(0.1, 5, 12)
    vector, loss = net.encode_mean(window), net.loss(window, target, 1e-3, noise)[0]
    net.set_scale(centre, scale)
    torch.testing.assert_close(net.encode_mean(window * scale + centre), vector, atol=1e-5, rtol=1e-5)
    rescaled = net.loss(window * scale + centre, target * scale + centre, 1e-3, noise)[0]
    torch.testing.assert_close(rescaled, loss, atol=1e-5, rtol=1e-4)
    net.set_scale(torch.zeros(12), torch.zeros(12))
    assert torch.equal(net.scale, torch.ones(12))  # constant columns


def test_weights_from_before_the_scale_mean_the_same() -> None:
    torch.manual_seed(2)
    old = RegimeNet(RegimeConfig(size="tiny", recent_skip=False))
    state = {name: value for name, value in old.state_dict().items() if name not in ("centre", "scale")}
    new = RegimeNet(RegimeConfig(size="tiny"))
    new.set_scale(torch.ones(12), 2 * torch.ones(12))
    new.load_state_dict(state)
    window = torch.randn(3, 96, 12)
    assert torch.equal(new.encode_mean(window), old.encode_mean(window))


def test_autocast_to_bfloat16_stays_close_to_float32() -> None:
    torch.manual_seed(3)
    net = RegimeNet(RegimeConfig(size="tiny"))
    window, target, noise = torch.randn(16, 96, 12), torch.randn(16, 4, 12), torch.randn(16, 8)
    exact, _ = net.loss(window, target, 1e-3, noise)
    with torch.autocast("cpu", torch.bfloat16):
        close, _ = net.loss(window, target, 1e-3, noise)
    assert close.dtype == torch.float32
    assert close.item() != exact.item()
    assert close.item() == pytest.approx(exact.item(), rel=0.02)

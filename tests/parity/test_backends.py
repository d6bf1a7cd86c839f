"""Every backend computes the networks' own numbers, and dropout masks really vary what they answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agents.settings import EmbedderKind
from algospace.errors import BundleError, ConfigError
from algospace.execution.decision import Reason
from serving.backends import make_backend
from serving.bundle import Bundle
from serving.half import BAND, compare, confidences_of
from serving.policy import BundlePolicy
from serving.torch_backend import load_weights
from tests.packages import require_package
from tests.serving_market import (
    REGIME_SIZE,
    accounts,
    full_schema,
    random_bundle,
    random_networks,
    rows,
    serving_table,
)

BACKENDS = ("torch", "onnx")
KINDS: tuple[EmbedderKind, ...] = ("tcn", "lstm", "lstm_recurrent", "transformer")
_SIZES = [(1, 1), (1, 30), (5, 4)]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbedderKind, Bundle]:
    directory = tmp_path_factory.mktemp("bundles") / request.param
    return request.param, random_bundle(directory, seed=3, embedder=request.param)


def inputs(batch: int, samples: int, hidden: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    rng, schema = np.random.default_rng(seed), full_schema()

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, 1.0, shape).astype(np.float32)

    masks = (rng.random((batch, samples, 4, hidden)) < 0.9).astype(np.float32) / np.float32(0.9)
    return {
        "strategic": normal(batch, schema.strategic.window, schema.strategic.width),
        "tactical": normal(batch, schema.tactical.window, schema.tactical.width),
        "window": normal(batch, schema.regime.window, schema.regime.width),
        "regime": normal(batch, REGIME_SIZE), "synergy": normal(batch, 3), "account": normal(batch, 8),
        "proposal": normal(batch, 3), "votes": np.eye(3, dtype=np.float32)[rng.integers(0, 3, (batch, 3))],
        "allowed": np.tile(np.array([1.0, 0.0, 1.0], np.float32), (batch, 1)), "masks": masks,
        "direction": np.where(rng.random((batch, 1)) < 0.5, -1.0, 1.0).astype(np.float32)}


def pick(given: dict[str, np.ndarray], *names: str, masks: slice | None = None) -> dict[str, np.ndarray]:
    picked = {name: given[name] for name in names}
    if masks is not None:
        picked["masks"] = given["masks"][:, :, masks]
    return picked


VOTE = ("strategic", "tactical", "regime", "synergy", "account")
EXECUTE = ("votes", "proposal", "regime", "synergy", "account", "allowed")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "samples"), _SIZES)
def test_graphs_equal_the_networks(case: tuple[EmbedderKind, Bundle], backend: str, batch: int,
                                   samples: int) -> None:
    kind, bundle = case
    core, risk, regime = random_networks(3, kind)
    given = inputs(batch, samples)
    t = {name: torch.from_numpy(value) for name, value in given.items()}
    infer = make_backend(backend, bundle).infer
    with torch.no_grad():
        shared = core.shared_input(torch.cat((t["regime"], t["synergy"], t["account"]), -1))
        embedded = core.embed_windows(t["strategic"], t["tactical"])
        hidden = core.voter_trunk(embedded, shared)
        votes = torch.stack([core.voter_logits(hidden, t["masks"][:, k, :3]) for k in range(samples)], 1)
        hidden = core.execution_trunk(t["votes"], t["proposal"], shared)
        answers = torch.stack([core.execution_logits(hidden, t["masks"][:, k, 3:], t["allowed"] > 0.5)
                               for k in range(samples)], 1)
        state = risk.state(t["strategic"], t["tactical"], t["regime"], t["direction"])
        choices = risk.logits(risk.trunk(state), torch.ones(batch, 3, risk.config.hidden))
        vectors = regime.encode_mean(t["window"])
    vote = infer("vote", pick(given, *VOTE, masks=slice(0, 3)))
    _close(vote["logits"], votes)
    _close(vote["embedded"], embedded)
    _close(infer("execute", pick(given, *EXECUTE, masks=slice(3, 4)))["logits"], answers)
    _close(infer("mrms", pick(given, "strategic", "tactical", "regime", "direction"))["logits"], choices)
    _close(infer("rde", pick(given, "window"))["regime"], vectors)
    cut = infer("embed", pick(given, "strategic", "tactical"))["embedded"]
    heads = infer("heads", {"embedded": cut, **pick(given, "regime", "synergy", "account", masks=slice(0, 3))})
    _close(heads["logits"], votes)


def _close(found: np.ndarray, expected: torch.Tensor) -> None:
    reference = expected.numpy()
    assert found.shape == reference.shape
    allowed = reference > -1e8  # masked actions hold a huge constant
    assert np.array_equal(found > -1e8, allowed)
    np.testing.assert_allclose(found[allowed], reference[allowed], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_vary_the_answer(case: tuple[EmbedderKind, Bundle], backend: str) -> None:
    given = inputs(1, 30)
    infer = make_backend(backend, case[1]).infer
    assert infer("vote", pick(given, *VOTE, masks=slice(0, 3)))["logits"].var(axis=1).max() > 1e-6
    answer = infer("execute", pick(given, *EXECUTE, masks=slice(3, 4)))["logits"]
    assert answer[..., (0, 2)].var(axis=1).min() > 1e-9
    ones = given | {"masks": np.ones_like(given["masks"])}
    assert infer("vote", pick(ones, *VOTE, masks=slice(0, 3)))["logits"].var(axis=1).max() < 1e-12


def test_unknown_backends_and_graphs_are_refused(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle", experts=False)
    with pytest.raises(ConfigError, match="unknown backend 'tpu'"):
        make_backend("tpu", bundle)
    for name in BACKENDS:
        with pytest.raises(ConfigError, match="no graph 'mrms'"):
            make_backend(name, bundle).infer("mrms", {})


def test_verdicts_agree_across_backends(tmp_path: Path) -> None:
    """Same inputs and masks: the same verdict unless the confidence is within 1e-4 of the threshold."""
    bundle, table = random_bundle(tmp_path / "bundle", seed=3), serving_table()
    policies = [BundlePolicy(bundle, table, make_backend(name, bundle)) for name in BACKENDS]
    passed = 0
    for row in rows(table, 60):
        for account in accounts(table, row):
            first, second = (policy.decide(row, account) for policy in policies)
            assert first.confidence == pytest.approx(second.confidence, abs=1e-5)
            if abs(first.confidence - bundle.gate().threshold) > 1e-4:
                assert first.reason == second.reason
                assert first.direction == second.direction
            passed += first.reason is Reason.EXECUTE
    assert passed > 0


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("batch", [1, 5, 1024, 1500])
def test_engines_equal_torch(backend: str, batch: int, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    require_package(backend)
    bundle = random_bundle(tmp_path / "bundle", seed=3)
    engine = make_backend(backend, bundle, tmp_path / "engines")
    given, reference = inputs(batch, bundle.manifest.gate.iterations), make_backend("torch", bundle)
    for graph, chosen in (("embed", pick(given, "strategic", "tactical")), ("rde", pick(given, "window")),
                          ("vote", pick(given, *VOTE, masks=slice(0, 3))),
                          ("mrms", pick(given, "strategic", "tactical", "regime", "direction")),
                          ("execute", pick(given, *EXECUTE, masks=slice(3, 4)))):
        for _ in range(2):  # captured, then replayed
            found = engine.infer(graph, chosen)
            for name, value in reference.infer(graph, chosen).items():
                _close(found[name], torch.from_numpy(value))
    logits = engine.infer("vote", pick(given, *VOTE, masks=slice(0, 3)))["logits"]
    assert logits.var(axis=1).max() > 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_fp16_engines_keep_the_verdicts(backend: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    require_package(backend)
    pytest.importorskip("modelopt", reason="FP16 needs ModelOpt")
    bundle = random_bundle(tmp_path / "bundle", seed=3)
    engine = make_backend(backend, bundle, tmp_path / "engines", "fp16")
    given, reference = inputs(300, bundle.manifest.gate.iterations), make_backend("torch", bundle)
    asked = {"vote": pick(given, *VOTE, masks=slice(0, 3)), "execute": pick(given, *EXECUTE, masks=slice(3, 4))}
    exact, rounded = ({graph: one.infer(graph, chosen) for graph, chosen in asked.items()}
                      for one in (reference, engine))
    threshold = float(np.median(confidences_of(exact, bundle.gate(), 0.5)))
    report = compare(exact, rounded, bundle.gate(), threshold)
    assert report.confidence < BAND
    assert report.unexplained == 0
    assert max(report.difference.values()) > 0.0  # it did compute in another precision


def test_a_bundle_with_networks_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle", seed=3)
    with pytest.raises(BundleError, match="core is a network that this version builds otherwise") as refused:
        load_weights(bundle, "core", torch.nn.Linear(2, 2))
    assert "\n" not in str(refused.value)

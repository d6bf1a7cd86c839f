"""Trunk and masked heads on compiled code equal the exported graphs, and a row's answer is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.gate import GateConfig
from agents.mask_rows import decision_rows
from agents.settings import EmbedderKind
from algospace.errors import InternalError
from algospace.seeding import mask_bank
from serving import kernels
from serving.backends import make_backend
from serving.bundle import Bundle
from serving.heads import Heads
from tests.serving_market import random_bundle

ROWS = 5


def case(folder: Path, samples: int, kind: EmbedderKind = "tcn") -> tuple[Bundle, Heads, dict[str, np.ndarray]]:
    bundle = random_bundle(folder / "bundle", seed=3, embedder=kind, gate=GateConfig(iterations=samples))
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, 1.0, shape).astype(np.float32)

    given = {"embedded": np.tanh(normal(ROWS, 3, 16)), "regime": normal(ROWS, 8), "synergy": normal(ROWS, 3),
             "account": normal(ROWS, 8), "proposal": normal(ROWS, 3),
             "allowed": (rng.random((ROWS, 3)) < 0.7).astype(np.float32)}
    return bundle, Heads(bundle), given


def context(given: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate((given["regime"], given["synergy"], given["account"]), 1)


@pytest.mark.parametrize("samples", [1, 7, 30, 256])
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_the_heads_are_the_graphs(tmp_path: Path, samples: int, backend: str) -> None:
    from serving.decider import Decider

    bundle, heads, given = case(tmp_path, samples)
    infer = make_backend(backend, bundle).infer
    decider = Decider(bundle, make_backend(backend, bundle))
    seeds = np.array([0, 1, 12345, 2**63 - 1, 77], np.uint64)
    masks = np.stack([decider.masks(int(seed)) for seed in seeds])
    starts = heads.starts(seeds)
    parts = {name: given[name] for name in ("regime", "synergy", "account")}
    expected = infer("heads", {"embedded": given["embedded"], "masks": np.ascontiguousarray(masks[:, :, :3]),
                               **parts})["logits"]
    np.testing.assert_allclose(heads.votes(given["embedded"], context(given), starts), expected, rtol=1e-5,
                               atol=2e-5)
    chosen = np.array([[0, 1, 2], [2, 2, 2], [1, 0, 0], [0, 0, 0], [1, 1, 1]], np.int8)
    expected = infer("execute", {"votes": np.eye(3, dtype=np.float32)[chosen], "proposal": given["proposal"],
                                 "allowed": given["allowed"], "masks": np.ascontiguousarray(masks[:, :, 3:]),
                                 **parts})["logits"]
    found = heads.execution(chosen, given["proposal"], context(given), starts, given["allowed"] > 0.5,
                            np.ones(ROWS, np.bool_))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_a_row_does_not_depend_on_the_rows_beside_it(tmp_path: Path) -> None:
    _, heads, given = case(tmp_path, 30)
    starts = heads.starts(np.arange(ROWS, dtype=np.uint64))
    together = heads.votes(given["embedded"], context(given), starts)
    for row in range(ROWS):
        part = slice(row, row + 1)
        alone = heads.votes(given["embedded"][part], context(given)[part], starts[part])
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("units", [1, 2, 37, 64])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_masks_as_bytes_give_the_sums_of_the_bank(units: int, rate: float) -> None:
    """In float32, unit after unit: to the last bit, whether the number of units is even or odd."""
    rng, seeds, samples = np.random.default_rng(units), np.array([3, 2**40], np.uint64), 33
    hidden, weight, bias = (rng.normal(0.0, 1.0, shape).astype(np.float32)
                            for shape in ((2, 3, units), (3, units, 3), (3, 3)))
    bank = mask_bank(7, kernels.BANK_ROWS, units, rate)
    starts, found = np.empty(2, np.int64), np.zeros((2, samples, 3, 3), np.float32)
    kernels.mask_starts(seeds, starts)
    kernels.masked_heads(hidden, starts, 0, *kernels.mask_lanes(bank), weight, bias, np.zeros(2, np.bool_), found)
    for n, seed in enumerate(seeds):
        masks, sums = bank[decision_rows(int(seed), samples, 4)], np.zeros((samples, 3, 3), np.float32)
        for j in range(units):
            sums += masks[:, :3, j, None] * (hidden[n, :, j, None] * weight[:, j])
        np.testing.assert_array_equal(found[n], sums + bias)


def test_a_bank_of_other_numbers_is_refused() -> None:
    bank = mask_bank(7, kernels.BANK_ROWS, 4, 0.5)
    bank[9, 1] = 1.0
    with pytest.raises(InternalError, match="one other value"):
        kernels.mask_lanes(bank)

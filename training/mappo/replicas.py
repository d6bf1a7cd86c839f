"""One minibatch's gradient by several threads of one process.

Small nets are bound by many small operations, which torch's own threads cannot share; segments can be shared.
Every thread runs its segments through a module of its own, whose parameters are the learner's and whose gradients
are not; the gradients are then added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from training.mappo.loss import LossParts
from training.mappo.module import TeamModule, build_team_module

Batch = dict[str, torch.Tensor]
Loss = Callable[[Any, Batch], LossParts]


class Replicas:
    """`count` threads, the caller among them, that share the parameters of `module`."""

    def __init__(self, module: TeamModule, spec: dict[str, Any], count: int) -> None:
        self._module = module
        self._others = [build_team_module(spec) for _ in range(count - 1)]
        # a new thread would take torch's default, every core
        self._threads = ThreadPoolExecutor(count - 1, "gradient", torch.set_num_threads, (1,))
        self.share()

    def share(self) -> None:
        """Take the parameters' storage again, after a state that was loaded may have brought its own."""
        for other in self._others:
            for own, shared in zip(other.parameters(), self._module.parameters(), strict=True):
                own.data = shared.data

    def backward(self, loss: Loss, batch: Batch) -> LossParts:
        """Add the gradient of `loss` over all segments to the learner's; returns the parts' sums.

        `loss(module, segments)` must be a sum over segments (divided by numbers that do not depend on the part).
        """
        modules = [self._module, *self._others]
        cuts = torch.arange(len(batch["rows"])).tensor_split(len(modules))
        shares = [{name: value[cut[0]: cut[-1] + 1] for name, value in batch.items()} for cut in cuts if len(cut)]
        running = [self._threads.submit(_differentiate, loss, module, share)
                   for module, share in zip(modules[1:], shares[1:], strict=False)]
        parts = [_differentiate(loss, modules[0], shares[0]), *(part.result() for part in running)]
        for other in self._others[:len(running)]:
            for own, added in zip(self._module.parameters(), other.parameters(), strict=True):
                if added.grad is not None and own.grad is not None:
                    own.grad += added.grad
                added.grad = None
        return LossParts(*(torch.stack(values).sum(0) for values in zip(*parts, strict=True)))


def _differentiate(loss: Loss, module: TeamModule, batch: Batch) -> LossParts:
    parts = loss(module, batch)
    parts.total.backward()
    return LossParts(*(part.detach() for part in parts))

"""What a row costs to embed in training, along a segment and window by window, for every embedder.

    python -m benchmarks.embedders [--steps 128] [--segments 8] [--window 60]

Rows per processor second, forward and backward, one thread, median of five interleaved rounds. The peer is
the same network through `Embedder.embed_segment` of the base class, which unfolds every window: what an
embedder must do that cannot share work between rows. `lstm` is its own peer; `lstm_recurrent` remembers more
along a segment than its window, so its two ways do not compute the same.
"""

from __future__ import annotations

import argparse
import time
import typing
from collections.abc import Callable

import numpy as np
import torch

from agents.embedders import Embedder, make_embedder
from agents.settings import EmbedderKind

FEATURES, DIM, ROUNDS = 20, 16, 5


def seconds(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """Processor time of one pass there and back."""
    started = time.process_time()
    torch.autograd.backward(run(x).sum())
    return time.process_time() - started


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=128, help="rows of a segment")
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--window", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{options.segments} segments of {options.steps} rows, windows of {options.window} x {FEATURES}\n\n"
          f"| embedder | along the segment, rows/s | window by window, rows/s | ratio |\n|---|---|---|---|")
    for kind in typing.get_args(EmbedderKind):
        net = make_embedder(kind, FEATURES, options.window, DIM)
        x = torch.randn(options.segments, net.context + options.steps, FEATURES)
        ways = (net.embed_segment, lambda rows, net=net: Embedder.embed_segment(net, rows))
        taken = [[seconds(way, x) for way in ways] for _ in range(1 + ROUNDS)][1:]  # the first round compiles
        along, single = options.segments * options.steps / np.median(taken, axis=0)
        print(f"| {kind} | {along:,.0f} | {single:,.0f} | {along / single:.2f} |", flush=True)


if __name__ == "__main__":
    main()

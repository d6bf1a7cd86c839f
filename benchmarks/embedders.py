"""What a row costs to embed in training, along a segment and window by window, for every embedder.

    python -m benchmarks.embedders [--steps 128] [--segments 8] [--window 60] [--compile]

Rows per processor second, forward and backward, one thread, median of five interleaved rounds. The peer is
the same network through `Embedder.embed_segment` of the base class, which unfolds every window: what an
embedder must do that cannot share work between rows. `lstm` is its own peer; `lstm_recurrent` remembers more
along a segment than its window, so its two ways do not compute the same. `--compile`: torch.compile of the first
way, and of the regime network's loss (batches of 128 windows), beside the same without it.
"""

from __future__ import annotations

import argparse
import functools
import time
import typing
from collections.abc import Callable

import numpy as np
import torch

from agents.embedders import Embedder, make_embedder
from agents.regime import RegimeNet
from agents.settings import EmbedderKind, RegimeConfig

FEATURES, DIM, ROUNDS, BATCH = 20, 16, 5, 128
Way = Callable[[torch.Tensor], torch.Tensor]


def seconds(run: Way, x: torch.Tensor) -> float:
    """Processor time of one pass there and back."""
    started = time.process_time()
    torch.autograd.backward(run(x).sum())
    return time.process_time() - started


def in_turn(ways: tuple[Way, Way], x: torch.Tensor) -> tuple[float, float]:
    """Median seconds of both."""
    taken = [[seconds(way, x) for way in ways] for _ in range(1 + ROUNDS)][1:]  # the first round compiles
    one, other = np.median(taken, axis=0)
    return float(one), float(other)


def compiled(name: str, way: Way, x: torch.Tensor, rows: int) -> None:
    """A line: without and with torch.compile, and how long that took."""
    started = time.perf_counter()
    fast: Way = torch.compile(way, dynamic=False)
    seconds(fast, x)
    first = time.perf_counter() - started
    plain, after = in_turn((way, fast), x)
    print(f"| {name} | {rows / plain:,.0f} | {rows / after:,.0f} | {plain / after:.2f} | {first:.0f} |",
          flush=True)


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=128, help="rows of a segment")
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--window", type=int, default=60)
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of window by window")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = options.segments * options.steps
    print(f"{options.segments} segments of {options.steps} rows, windows of {options.window} x {FEATURES}\n")
    print("| | rows/s | with torch.compile | ratio | first call, s |\n|---|---|---|---|---|" if options.compile
          else "| embedder | along the segment, rows/s | window by window, rows/s | ratio |\n|---|---|---|---|")
    for kind in typing.get_args(EmbedderKind):
        net = make_embedder(kind, FEATURES, options.window, DIM)
        x = torch.randn(options.segments, net.context + options.steps, FEATURES)
        if options.compile:
            compiled(kind, net.embed_segment, x, rows)
            continue
        along, single = in_turn((net.embed_segment, functools.partial(Embedder.embed_segment, net)), x)
        print(f"| {kind} | {rows / along:,.0f} | {rows / single:,.0f} | {single / along:.2f} |", flush=True)
    for size in ("small", "full") if options.compile else ():
        config = RegimeConfig(size=size)
        after, noise = torch.randn(BATCH, config.predict_steps, config.features), torch.randn(BATCH, config.latent)
        compiled(f"regime network, {size}", functools.partial(_loss, RegimeNet(config), after, noise),
                 torch.randn(BATCH, config.window, config.features), BATCH)


def _loss(net: RegimeNet, after: torch.Tensor, noise: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    return net.loss(window, after, 1.0, noise)[0]


if __name__ == "__main__":
    main()

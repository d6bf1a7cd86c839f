"""What the benchmarks of training begin with: their options, and a Ray of their own beside torch on one thread."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch


def options_of(about: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all share; `about` is the benchmark's docstring."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


@contextmanager
def local_ray(num_cpus: int) -> Iterator[None]:
    """Torch on one thread; for the block a Ray of this machine that nobody shares, whatever RAY_ADDRESS says."""
    torch.set_num_threads(1)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()

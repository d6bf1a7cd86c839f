"""A Ray cluster for a block of code: joined, or started and stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session(num_cpus: int = 2) -> Iterator[None]:
    """A Ray cluster for the block: the one this process already belongs to, the one that RAY_ADDRESS names, or a
    local one of `num_cpus` processors that ends with the block. RAY_AUTH_MODE is `disabled` unless set."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    for name in ("ray", "ray.rllib"):  # RLlib's advice to its developers is not for our users
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        ray.init(log_to_driver=False, logging_level="ERROR")
    else:
        # "local", or Ray joins whatever cluster was last started on this machine; RAY_ADDRESS chooses one
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
                 logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()

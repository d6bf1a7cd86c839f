"""A Ray cluster for a block of code: joined, or started and stopped; and errors of ours that come back from it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from algospace.errors import AlgoSpaceError, ConfigError
from algospace.ray_token import own_ray_token

_ANSWER_SECONDS = 10.0


@contextmanager
def ray_session(num_cpus: int = 2, num_gpus: float = 0.0) -> Iterator[None]:
    """A Ray cluster for the block: the one this process already belongs to, the one that RAY_ADDRESS names, or a
    local one of `num_cpus` processors that ends with the block and asks for a token (algospace.ray_token).

    A local one counts as many processors as it is asked for, or actors would wait for ever for one; GPUs it has or
    lacks. A cluster that is joined may grow, so there actors wait for room.
    Raises ConfigError if nothing answers at RAY_ADDRESS, or if this machine has fewer than `num_gpus` GPUs.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.rllib"):  # RLlib's advice to its developers is not for our users
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise ConfigError(_no_cluster(os.environ.get("RAY_ADDRESS", ""))) from error
    else:
        own_ray_token()
        # "local", or Ray joins whatever cluster was last started on this machine; RAY_ADDRESS chooses one
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
                 logging_level="ERROR")
        _require_gpus(num_gpus)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def own_errors() -> Iterator[None]:
    """An error of ours that a remote learner or runner raised in the block comes out in its one line."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, AlgoSpaceError):
            raise error.cause from None
        raise


def _require_gpus(wanted: float) -> None:
    """ConfigError if the local Ray, which is ended then, counts fewer GPUs."""
    import ray

    found = ray.cluster_resources().get("GPU", 0.0)
    if found < wanted:
        ray.shutdown()
        raise ConfigError(f"gpus_per_learner: the learners need {wanted:g} GPUs, this machine has {found:g}; set "
                          f"it to 0, or join a cluster that has them (RAY_ADDRESS)")


def _check_address(address: str) -> None:
    """ConfigError if nobody listens at host:port: Ray itself would ask for minutes, and then end the process."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+?)\]?:(\d+)", address)
    if found is None:  # `auto`, or a name that Ray resolves
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(_no_cluster(address)) from error


def _no_cluster(address: str) -> str:
    return f"RAY_ADDRESS={address}: no Ray cluster answers there; start one with `ray start --head`, or unset it"

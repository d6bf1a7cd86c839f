"""Learners that die: rebuild the group from the driver's copy of its state and repeat the update.

RLlib's LearnerGroup marks a dead learner as unhealthy and does not restart it; with one learner gone the others
stand still in their next all-reduce. Spot machines make this an ordinary event, so the driver keeps the learners'
state (weights, value norm, Adam's moments) as it was before the update, ends what is left of the group, starts
another and gives it the same batch: nothing is lost, and with the same number of learners the result is the same
to the bit. If the cluster has no room for all learners, fewer go on (none: the driver itself learns), and the
group grows again when there is room.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE

from algospace.errors import InternalError

ROOM_SECONDS = 60.0
WATCH_SECONDS = 5.0
_ATTEMPTS = 5
_PING_SECONDS = 20.0
T = TypeVar("T")
_FAULTS = (RayError, AssertionError, IndexError)  # RLlib's own reactions to a group that is not whole


class RecoveryWarning(UserWarning):
    """Something of the cluster was lost and replaced; training went on."""


class LearnerGuard:
    """Everything that the algorithm asks of its learner group, repeated on a new one if a learner dies."""

    def __init__(self, algorithm: Any) -> None:
        self._algorithm = algorithm
        self._wanted = int(algorithm.config.num_learners)
        self._state: dict[str, Any] | None = None
        self.rebuilds = 0
        if self._group.is_remote:
            self._state = self._group.get_state()

    @property
    def _group(self) -> Any:
        return self._algorithm.learner_group

    def update(self, **kwargs: Any) -> list[Any]:
        """LearnerGroup.update; the state after it is kept with the driver."""
        if self._wanted == 0:
            return list(self._group.update(**kwargs))
        missing = self._wanted - len(self._group)

        def attempt() -> tuple[list[Any], dict[str, Any]]:
            with _watched(self._group):
                results = list(self._group.update(**kwargs))
            return results, self._group.get_state()

        results, self._state = self.call(attempt, grow=missing > 0 and _room(self._algorithm.config, missing))
        return results

    def weights(self, module_id: str) -> dict[str, Any]:
        """State of the module as it was after the last update, without asking a learner where a copy is here."""
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self._state or self._group.get_state(components=component)
        return dict(state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][module_id])

    def refresh(self) -> None:
        """The learners' state was set from outside (a checkpoint): take it over."""
        if self._wanted:  # also where the driver learns in their place
            self._state = self._group.get_state()

    def call(self, work: Callable[[], T], grow: bool = False) -> T:
        """`work`, repeated from the kept state as often as learners die in it or at their start; other errors
        pass. grow: on a new group in any case, because there is room for more learners."""
        stale, fault = grow, None
        for _ in range(_ATTEMPTS):
            try:
                if stale:
                    self._rebuild()
                    stale = False
                self._require_whole()
                return work()
            except _FAULTS as error:
                if not stale and not (self._group.is_remote and _dead(self._group)):
                    raise
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                warnings.warn(f"a learner was lost ({reason}); the learners start again from the state before "
                              f"this update, which is repeated", RecoveryWarning, stacklevel=3)
                stale, fault = True, error
        raise InternalError(f"learners died in {_ATTEMPTS} attempts at one update; the last checkpoint is "
                            f"intact") from fault

    def _require_whole(self) -> None:
        """RLlib skips learners that it believes ill, and answers with nothing: look first."""
        group = self._group
        if group.is_remote and group._worker_manager.num_healthy_actors() < len(group):
            if _dead(group):
                raise IndexError("a learner does not answer")
            for actor in group._worker_manager.actors():
                group._worker_manager.set_actor_state(actor, healthy=True)

    def _rebuild(self) -> None:
        """End the old group, start one of as many learners as there is room for, give it the kept state."""
        old = self._group
        spec = old._module_spec
        end_learners(old)  # first: the living ones hold the processors that the new group needs
        config = self._algorithm.config.copy(copy_frozen=False)
        num_learners = _learners_with_room(config, self._wanted)
        config.learners(num_learners=num_learners)
        self._algorithm.learner_group = config.build_learner_group(rl_module_spec=spec)
        assert self._state is not None
        self._group.set_state(self._state)
        self.rebuilds += 1
        if num_learners < self._wanted:
            warnings.warn(f"the cluster has room for {num_learners} of {self._wanted} learners (0: the driver "
                          f"learns); training goes on and takes more when there is room", RecoveryWarning,
                          stacklevel=4)


def end_learners(group: Any) -> None:
    """Kill what is left of a group, at once: a graceful end would wait for the dead one's part of it."""
    if group.is_remote:
        group._backend_executor.shutdown(graceful_termination=False)
    group._is_shut_down = True


def _dead(group: Any) -> list[int]:
    """Numbers of learners that are dead or do not answer."""
    pings = {number: actor.__ray_ready__.remote() for number, actor in group._worker_manager.actors().items()}
    ready, _ = ray.wait(list(pings.values()), num_returns=len(pings), timeout=_PING_SECONDS)
    return [number for number, ping in pings.items() if ping not in ready or _failed(ping)]


def _failed(ping: Any) -> bool:
    try:
        ray.get(ping)
    except RayError:
        return True
    return False


@contextmanager
def _watched(group: Any) -> Iterator[None]:
    """Kill the whole group when one of its learners dies: without this, the loss of a machine that closes no
    connection leaves the others in their all-reduce until torch's timeout of half an hour."""
    if not group.is_remote or len(group) < 2:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        pings = [actor.__ray_ready__.remote() for actor in group._workers]
        while not done.wait(WATCH_SECONDS):
            ready, _ = ray.wait(pings, num_returns=len(pings), timeout=0)
            if any(_failed(ping) for ping in ready):
                for actor in group._workers:
                    ray.kill(actor)
                return
            # a ping sent before the update is answered before it, and would say nothing of what comes after
            pings = [actor.__ray_ready__.remote() if ping in ready else ping
                     for actor, ping in zip(group._workers, pings, strict=True)]

    thread = threading.Thread(target=watch, name="learner-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _learners_with_room(config: Any, wanted: int) -> int:
    """How many learners can start: `wanted` as soon as there is room, after ROOM_SECONDS as many as there are."""
    deadline = time.monotonic() + ROOM_SECONDS
    while True:
        room = next((n for n in range(wanted, 0, -1) if _room(config, n)), 0)
        if room == wanted or time.monotonic() > deadline:
            return room
        time.sleep(0.5)


def _room(config: Any, learners: int) -> bool:
    """Whether the cluster has free processors and GPUs for `learners`; a placement group has reserved them."""
    if ray.util.get_current_placement_group() is not None:
        return True
    cpus = config.num_cpus_per_learner
    gpus = config.num_gpus_per_learner
    cpus = cpus if cpus != "auto" else (1 if gpus == 0 else 0)
    free = ray.available_resources()
    return free.get("CPU", 0.0) >= learners * cpus and free.get("GPU", 0.0) >= learners * gpus

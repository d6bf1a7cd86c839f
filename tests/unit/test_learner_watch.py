"""The guard over learners: the watch sees a death in the middle of an update; a rebuild frees processors first."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from training.mappo import recovery
from training.mappo.recovery import LearnerGuard, RecoveryWarning


class Learner:
    """An actor that answers pings at once while it lives."""

    def __init__(self) -> None:
        self.alive, self.pings = True, 0
        self.__ray_ready__ = SimpleNamespace(remote=self._ping)

    def _ping(self) -> SimpleNamespace:
        self.pings += 1
        return SimpleNamespace(failed=not self.alive)


class Group:
    """What the guard uses of a remote LearnerGroup."""

    is_remote, _module_spec, _is_shut_down = True, None, False

    def __init__(self, size: int, log: list[str]) -> None:
        self._workers = [Learner() for _ in range(size)]
        self._log = log
        actors = dict(enumerate(self._workers))
        self._worker_manager = SimpleNamespace(actors=lambda: actors, num_healthy_actors=lambda: size,
                                               set_actor_state=lambda *args, **kwargs: None)
        self._backend_executor = SimpleNamespace(shutdown=lambda **kwargs: log.append("end"))

    def __len__(self) -> int:
        return len(self._workers)

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        self._log.append("state")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Learner]:
    """Ray without Ray: every ping is ready, those of the dead fail. The learners that were killed."""
    gone: list[Learner] = []

    def get(ping: SimpleNamespace) -> None:
        if ping.failed:
            raise RayError

    monkeypatch.setattr(recovery, "ray", SimpleNamespace(
        wait=lambda pings, **kwargs: (list(pings), []), get=get, kill=gone.append))
    return gone


def test_a_learner_that_dies_after_its_first_ping_is_noticed(killed: list[Learner],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "WATCH_SECONDS", 0.01)
    group = Group(2, [])
    with recovery._watched(group):
        _until(lambda: min(learner.pings for learner in group._workers) > 1)
        assert not killed
        group._workers[1].alive = False
        _until(lambda: len(killed) == 2)
    assert killed == group._workers


def _until(true: Any) -> None:
    deadline = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("deaths_at_start", [0, 1])
def test_the_rest_of_a_group_ends_before_room_is_looked_for(killed: list[Learner], monkeypatch: pytest.MonkeyPatch,
                                                            deaths_at_start: int) -> None:
    log: list[str] = []
    left = [deaths_at_start]

    def build(**kwargs: Any) -> Group:
        if left[0]:
            left[0] -= 1
            raise RayError("died at its start")
        log.append("build")
        return Group(2, log)

    def room(config: Any, learners: int) -> bool:
        log.append("room")
        return True

    monkeypatch.setattr(recovery, "_room", room)
    config = SimpleNamespace(num_learners=2, copy=lambda **kwargs: SimpleNamespace(
        learners=lambda **kwargs: None, build_learner_group=build))
    first = Group(2, log)
    algorithm = SimpleNamespace(config=config, learner_group=first)
    guard = LearnerGuard(algorithm)

    def work() -> str:
        if algorithm.learner_group is first:
            first._workers[0].alive = False
            raise RayError("the actor died")
        return "done"

    with pytest.warns(RecoveryWarning, match="a learner was lost"):
        assert guard.call(work) == "done"
    assert log == ["end", "room"] * (deaths_at_start + 1) + ["build", "state"]
    assert guard.rebuilds == 1

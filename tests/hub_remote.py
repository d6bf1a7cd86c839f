"""The replicas' shared actor without Ray, for tests: it can be away, silent, faulty, or die."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError

from serving.hub_actor import HubBody
from serving.service import AppSettings


class Remote:
    """A HubBody as a Ray handle would be: `actor.method.remote(...)`, values copied; `dies` replaces the body."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings.stream.model_dump(mode="json")
        self.body, self.away = HubBody(self._settings), False
        self.faults: dict[str, int] = {}
        self.silent = False
        self.late: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*arguments: Any) -> Any:
                if self.away:
                    raise RayActorError
                if self.silent:
                    await asyncio.sleep(60)
                if self.faults.get(name, 0) > 0:
                    self.faults[name] -= 1
                    raise RuntimeError("cannot be serialised")
                body = self.body
                result = copy.deepcopy(await getattr(body, name)(*copy.deepcopy(arguments)))
                if self.away or body is not self.body:
                    raise RayActorError
                if self.late.get(name, 0) > 0:  # it has been heard
                    self.late[name] -= 1
                    await asyncio.sleep(60)
                return result

        return Method

    def dies(self) -> None:
        self.body._tell()
        self.body = HubBody(self._settings)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)

"""Which bundle is champion, which is shadow, which was champion before: values, and how they follow each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Alias = Literal["champion", "shadow"]


@dataclass(frozen=True)
class ModelRef:
    """A bundle and where it is: its id, its folder, and what it was asked for by (`folder` or a registry's URI).

    name, version: of the registered model; "" where it comes from a folder that no registry knows.
    """

    id: str
    folder: str
    source: str
    name: str = ""
    version: str = ""


@dataclass(frozen=True)
class Check:
    """One condition of a promotion, what was found, and whether it holds (see training.promotion)."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Aliases:
    """The state of a service's models; every change is a new one with the next `revision`. `rolled_back`: the
    champion came back by a roll-back."""

    champion: ModelRef
    shadow: ModelRef | None = None
    previous: ModelRef | None = None
    revision: int = 0
    rolled_back: bool = False

    def promote(self, ref: ModelRef) -> Aliases:
        """`ref` is champion, the champion is previous; a shadow that was promoted is shadow no more."""
        shadow = None if self.shadow is not None and self.shadow.id == ref.id else self.shadow
        return Aliases(ref, shadow, self.champion, self.revision + 1)

    def rollback(self) -> Aliases | None:
        """Champion and previous change places; None without a previous one."""
        if self.previous is None:
            return None
        return replace(self, champion=self.previous, previous=self.champion, revision=self.revision + 1,
                       rolled_back=True)

    def with_shadow(self, ref: ModelRef | None) -> Aliases:
        """`ref` decides beside the champion, or nothing does."""
        return replace(self, shadow=ref, revision=self.revision + 1)

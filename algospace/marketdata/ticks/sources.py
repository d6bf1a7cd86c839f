"""Which source covers which time of a tick catalog, and what a further one displaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from algospace.errors import InputError
from algospace.marketdata.quality import iso
from algospace.marketdata.ticks.schema import contract_names, stamps
from algospace.types import AnyArray, BoolArray, Ticks

Span = tuple[int, int]  # first and last time, both included
_NO_CONTRACT = ""


@dataclass(frozen=True)
class Incoming:
    """A source about to be written: its name, the SHA-256 of its content, and the time it covers by contract."""

    name: str
    sha256: str
    spans: dict[str, Span]
    columns: list[str]

    @classmethod
    def of(cls, ticks: Ticks, contracts: Sequence[str], name: str, sha256: str) -> Incoming:
        """By the ticks themselves."""
        spans: dict[str, Span] = {}
        for code, contract in enumerate(contracts or [_NO_CONTRACT]):
            own = ticks.ts
            if contracts and ticks.contract is not None:
                own = ticks.ts[ticks.contract == code]
            if own.size:
                spans[contract] = (int(own.min()), int(own.max()))
        return cls(name, sha256, spans, sorted(ticks.columns()))


@dataclass(frozen=True)
class Plan:
    """number of the incoming source; displaced other sources; drop(table) tells the held rows that go; touched is
    the time in which days can change."""

    number: int
    displaced: list[int]
    drop: Callable[[pa.Table], BoolArray]
    touched: Span


class Sources:
    """The sources of a manifest: name, sha256, columns, and spans, a list of [first, last] by contract."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.entries = entries

    def plan(self, folder: Path, incoming: Incoming, overlap: str) -> Plan:
        """What writing `incoming` displaces. InputError if it overlaps a source of another name."""
        number = next((k for k, e in enumerate(self.entries) if e["sha256"] == incoming.sha256), len(self.entries))
        known = number < len(self.entries)
        displaced = []
        for k, entry in enumerate(self.entries):
            if k == number or not _overlaps(entry["spans"], incoming.spans) or overlap == "append":
                continue
            if known and _covers(self.entries[number]["spans"], incoming.spans):
                continue  # decided when it was first imported
            if overlap == "refuse" and entry["name"] != incoming.name:
                first, last = _whole(incoming.spans)
                raise InputError(folder, f"{incoming.name} ({iso(first)} to {iso(last)}) overlaps the ticks of "
                                         f"{entry['name']}",
                                 "replace those, append to them, or choose another --out")
            displaced.append(k)
        spans = [_whole(incoming.spans)]
        if known and self.entries[number]["spans"]:
            held = self.entries[number]["spans"]
            spans += [(int(a), int(b)) for parts in held.values() for a, b in parts]
        touched = (min(first for first, _ in spans), max(last for _, last in spans))
        return Plan(number, displaced, lambda table: _dropped(table, number, displaced, incoming.spans), touched)

    def after(self, plan: Plan, incoming: Incoming) -> list[dict[str, Any]]:
        """The entries once `incoming` is written."""
        for k in plan.displaced:
            self.entries[k]["spans"] = _without(self.entries[k]["spans"], incoming.spans)
        entry = {"name": incoming.name, "sha256": incoming.sha256, "columns": incoming.columns,
                 "spans": {contract: [list(span)] for contract, span in incoming.spans.items()}}
        self.entries[plan.number:plan.number + 1] = [entry]
        return self.entries

    def contracts(self, held: Sequence[str], incoming: Sequence[str]) -> list[str]:
        """Names of contract codes, in a lasting order; an empty one where only some sources name contracts."""
        names = list(dict.fromkeys([*held, *incoming]))
        unnamed = any(_NO_CONTRACT in entry["spans"] for entry in self.entries)
        return [*names, _NO_CONTRACT] if names and unnamed and _NO_CONTRACT not in names else names

    def columns(self, optional: Sequence[str]) -> list[str]:
        """Optional columns that the ticks have: those of any source, but ts_recv only if every source has it."""
        live = [set(entry["columns"]) for entry in self.entries if entry["spans"]]
        return [name for name in optional
                if (all if name == "ts_recv" else any)(name in columns for columns in live)]


def _dropped(table: pa.Table, number: int, displaced: Sequence[int], spans: dict[str, Span]) -> BoolArray:
    """Rows of the source itself, and those of displaced sources in the time that it covers."""
    source = table.column("source").to_numpy()
    drop: BoolArray = source == number
    doubtful = np.isin(source, displaced)
    if doubtful.any():
        ts = stamps(table.column("ts"))
        names: AnyArray = np.array([name or _NO_CONTRACT for name in contract_names(table)], dtype=object)
        for contract, (first, last) in spans.items():
            alike = (names == contract) | (names == _NO_CONTRACT) | (contract == _NO_CONTRACT)
            drop |= doubtful & alike & (ts >= first) & (ts <= last)
    return drop


def _alike(contract: str, other: str) -> bool:
    """Whether ticks under two names can be the same trades; a source that names no contract can hold any."""
    return contract == other or _NO_CONTRACT in (contract, other)


def _overlaps(held: dict[str, list[list[int]]], spans: dict[str, Span]) -> bool:
    """Whether they share more than an instant at which one ends and the other begins."""
    return any(_alike(contract, name) and ((a < last and first < b) or (a, b) == (first, last))
               for contract, (first, last) in spans.items() for name, parts in held.items() for a, b in parts)


def _covers(held: dict[str, list[list[int]]], spans: dict[str, Span]) -> bool:
    return all(any(a <= first and last <= b for a, b in held.get(contract, []))
               for contract, (first, last) in spans.items())


def _without(held: dict[str, list[list[int]]], spans: dict[str, Span]) -> dict[str, list[list[int]]]:
    """Held spans less the displaced time."""
    left: dict[str, list[list[int]]] = {}
    for name, parts in held.items():
        pieces = parts
        for contract, span in spans.items():
            if _alike(contract, name):
                pieces = [piece for part in pieces for piece in _less(part, span)]
        if pieces:
            left[name] = pieces
    return left


def _less(part: list[int], span: Span) -> list[list[int]]:
    """What lies of a held span before and after the displaced one."""
    (a, b), (first, last) = part, span
    if b < first or last < a:
        return [part]
    return ([[a, first]] if a < first else []) + ([[last, b]] if last < b else [])


def _whole(spans: dict[str, Span]) -> Span:
    return min(first for first, _ in spans.values()), max(last for _, last in spans.values())

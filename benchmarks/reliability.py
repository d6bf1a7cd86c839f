"""The service when things go wrong, on 127.0.0.1: `python -m benchmarks.reliability kill|switch|overload|all`.

kill: two replicas, one of them is killed every 30 s (SIGKILL): every answer is, to the last bit of its confidence,
what the policy in this process decides for that request, none is lost, and the client sends again only what was in
flight at a kill. switch: the champion changes every few seconds in use: no request fails or is sent again, each
answer is its model's. overload: 5 times what one replica can do: 503 at once, with Retry-After, and what is
accepted comes within the deadline.
`--minutes 10` is the long form: 300 decisions per second for so long. Figures as markdown; exit code 1 if a
promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.core import CoreNet
from agents.gate import GateConfig
from agents.settings import CoreConfig
from benchmarks._load import Judge, Load, Outcome, capacity
from benchmarks.serving import MARK, replica_processes
from serving.bundle import Bundle
from serving.client import request_of
from serving.deployment import APPLICATION, ServeSettings, start_service
from serving.policy import BundlePolicy
from tests.serving_market import (
    REGIME_SIZE,
    accounts,
    full_schema,
    network_shapes,
    random_bundle,
    random_networks,
    rows,
    serving_table,
)

TOKEN = "a-token-of-enough-length"
_SHOWN = 5
_SETTLED_S = 2.0
_FACTOR = 5.0
_LONG_RATE = 300.0


@dataclass(frozen=True)
class Questions:
    """Requests and, by model, what the policy in this process answers to each."""

    bodies: list[bytes]
    expected: dict[str, list[Any]]

    def judge(self, number: int, answer: dict[str, Any]) -> str | None:
        """What is wrong with an answer."""
        known = self.expected.get(answer["model"])
        if known is None:
            return f"an unknown model {answer['model'][:12]}"
        decision = known[number % len(known)]
        found = (answer["reason"], answer["direction"], answer["proposal"]["contracts"], answer["confidence"])
        wanted = (decision.reason.value, decision.direction, decision.proposal.contracts, decision.confidence)
        if found != wanted:
            return f"{found} instead of {wanted}"
        return None


def questions(bundles: list[Bundle], count: int = 60) -> Questions:
    """Requests of a random market, and the answers of each bundle."""
    table = serving_table()
    policies = [BundlePolicy(bundle, table) for bundle in bundles]
    asked = [(row, account) for row in rows(table, count // 2) for account in accounts(table, row)[:2]]
    inputs = [policies[0].inputs(row, account) for row, account in asked]  # the regime is the first bundle's
    return Questions([json.dumps(request_of(bundles[0], found)).encode() for found in inputs],
                     {bundle.id: [policy.decider.decide(found) for found in inputs]
                      for bundle, policy in zip(bundles, policies, strict=True)})


def settings(**changes: Any) -> ServeSettings:
    """A small service whose models can be switched; `changes` at the top level."""
    app = {"lifecycle": {"require_checks": False}, "service": {"log_requests": "none"},
           "security": {"rates": {"requests": "1000000/second"}}} | changes.pop("app", {})
    return ServeSettings.model_validate({"app": app, "cpus_per_replica": 0.4} | changes)


async def every(seconds: float, action: Callable[[], Any], done: list[Any]) -> None:
    """Do `action` again and again, in a thread; what it returned is added to `done`."""
    while True:
        await asyncio.sleep(seconds)
        done.append(await asyncio.to_thread(action))


async def under_load(load: Load, judge: Judge, seconds: float, action: Callable[[], Any],
                     outcome: Outcome | None = None) -> tuple[Outcome, list]:
    """Run `load` while `action` is done every so many seconds."""
    done: list[Any] = []
    task = asyncio.create_task(every(seconds, action, done))
    try:
        outcome = await load.run(judge, outcome)
        if task.done():
            task.result()
        return outcome, done
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class Killer:
    """Kills one of two replicas, and notes what was in flight from just before until its sockets were closed."""

    outcome: Outcome
    mark: str
    killed: list[int] = field(default_factory=list)
    exposed: set[int] = field(default_factory=set)

    def __call__(self) -> None:
        """Kill, if both run and have run for some seconds: HAProxy knows them, so one can be done without."""
        if self._running() < 2:
            return
        time.sleep(_SETTLED_S)
        found = replica_processes(self.mark)
        if self._running() < 2 or len(found) != 2:
            return
        pid, exposed = found[len(self.killed) % 2], set[int]()
        self.outcome.exposed = exposed
        exposed |= self.outcome.in_flight.copy()
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)
        while _holds_sockets(pid):
            time.sleep(0.001)
        self.outcome.exposed = None
        self.exposed |= exposed

    @staticmethod
    def _running() -> int:
        from ray import serve

        deployments = serve.status().applications[APPLICATION].deployments
        return int(deployments["decider"].replica_states.get("RUNNING", 0))


def _holds_sockets(pid: int) -> bool:
    """Whether a process that was killed has still to close its files."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Replicas are killed; nothing is lost, nothing is wrong, and only what was in flight is sent again."""
    bundle = random_bundle(folder / "kill")
    asked, outcome = questions([bundle]), Outcome()
    os.environ[MARK] = uuid.uuid4().hex
    killer = Killer(outcome, os.environ[MARK])
    with start_service(bundle.directory, TOKEN, None, settings(replicas=2)) as service:
        load = Load(service.url, TOKEN, asked.bodies, options.rate, options.seconds)
        asyncio.run(under_load(load, asked.judge, options.every, killer, outcome))
    must = [] if killer.killed else ["no replica was killed: give --seconds more than --every"]
    spared = [f"{number}: {why}" for number, why in outcome.again.items() if number not in killer.exposed]
    if spared:
        must.append(f"{len(spared)} requests were sent again though not in flight at a kill: {spared[:_SHOWN]}")
    found = figures(outcome) | {"killed": len(killer.killed), "in flight at kills": len(killer.exposed)}
    return found, must + faults(outcome)


def switch(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The champion changes; no request fails, none is sent again."""
    bundles = [random_bundle(folder / f"switch-{seed}", seed=seed) for seed in (0, 1)]
    asked, turn = questions(bundles), [0]

    def change() -> float:
        turn[0] += 1
        body = json.dumps({"source": str(bundles[turn[0] % 2].directory.resolve())}).encode()
        request = urllib.request.Request(f"{service.url}/v1/model", data=body, headers={
            "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return float(json.loads(answer.read())["seconds"])

    with start_service(bundles[0].directory, TOKEN, None, settings(replicas=options.replicas)) as service:
        load = Load(service.url, TOKEN, asked.bodies, options.rate, options.seconds)
        outcome, switched = asyncio.run(under_load(load, asked.judge, options.switch_every, change))
    must = faults(outcome)
    if outcome.again or outcome.broken:
        must.append(f"{len(outcome.again)} requests were sent again")
    if len(outcome.models) < 2:
        must.append("only one model has answered: give more --seconds")
    return figures(outcome) | {"switches": len(switched), "switch_s": round(max(switched, default=0.0), 3)}, must


def heavy_bundle(folder: Path, hidden: int, iterations: int) -> Bundle:
    """Decisions of some milliseconds: beside small ones, refusals would cost more than what they refuse."""
    _, risk, regime = random_networks()
    torch.manual_seed(0)
    core = CoreNet(network_shapes(full_schema(), REGIME_SIZE), CoreConfig(pass_bias=0.0, hidden=hidden))
    with torch.no_grad():
        core.head.mul_(40.0)
    gate = GateConfig(confidence_threshold=0.25, iterations=iterations)
    return random_bundle(folder, gate=gate, networks=(core, risk, regime))


def overload(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Five times the capacity of one replica, measured just before; its decisions are made heavy (--hidden,
    --iterations), so that the load can be made on the same machine."""
    bundle = heavy_bundle(folder / "overload", options.hidden, options.iterations)
    asked = questions([bundle], 8)
    few = settings(max_ongoing_requests=8, max_queued_requests=8,
                   app={"service": {"deadline_ms": options.deadline_ms, "log_requests": "none"}})
    with start_service(bundle.directory, TOKEN, None, few) as service:
        asyncio.run(capacity(service.url, TOKEN, asked.bodies, 1.0))  # warm
        most = asyncio.run(capacity(service.url, TOKEN, asked.bodies, 3.0))
        load = Load(service.url, TOKEN, asked.bodies, _FACTOR * most, options.seconds, connections=512,
                    patience_s=0.0, deadline_ms=options.deadline_ms)
        outcome = asyncio.run(load.run(asked.judge))
        still = asyncio.run(Load(service.url, TOKEN, asked.bodies, 10.0, 1.0).run(asked.judge))
    found = figures(outcome) | {"capacity_rps": round(most), "offered_rps": round(_FACTOR * most),
                                "refused_p50_ms": percentile(outcome.refused_ms, 50),
                                "refused_p99_ms": percentile(outcome.refused_ms, 99)}
    must = faults(outcome) + faults(still)
    if not outcome.statuses[503] or not outcome.accepted_ms:
        must.append("not both accepted and refused: no overload, or no service")
    if found["p99_ms"] > options.deadline_ms:
        must.append(f"p99 of accepted requests is {found['p99_ms']} ms, the deadline {options.deadline_ms:g} ms")
    if found["refused_p99_ms"] > options.deadline_ms:
        must.append(f"p99 of refusals is {found['refused_p99_ms']} ms: not quickly")
    return found, must


def figures(outcome: Outcome) -> dict[str, Any]:
    """One row of the table."""
    return {"sent": outcome.sent, "ok": outcome.statuses[200], "503": outcome.statuses[503],
            "wrong": len(outcome.wrong), "lost": len(outcome.lost), "sent again": len(outcome.again),
            "p50_ms": percentile(outcome.accepted_ms, 50), "p99_ms": percentile(outcome.accepted_ms, 99)}


def faults(outcome: Outcome) -> list[str]:
    """Wrong and lost answers, the first of them."""
    return outcome.wrong[:_SHOWN] + outcome.lost[:_SHOWN]


def percentile(values: list[float], q: float) -> float:
    """Milliseconds with two digits behind the point; infinite where there are none."""
    return round(float(np.percentile(values, q)), 2) if values else float("inf")


def markdown(name: str, row: dict[str, Any], must: list[str]) -> str:
    """The figures as a table of one row."""
    shown = {"scenario": name, "promises": "broken" if must else "kept"} | row
    lines = (shown, ["---"] * len(shown), shown.values())
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


SCENARIOS = {"kill": kill, "switch": switch, "overload": overload}


def main(arguments: list[str] | None = None) -> int:
    """Play the scenarios and print their figures; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=40.0, help="of load")
    parser.add_argument("--minutes", type=float, help="instead of --seconds; the rate is 300 unless it is given")
    parser.add_argument("--rate", type=float, help="decisions per second (kill, switch); 100 unless --minutes")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two kills")
    parser.add_argument("--switch-every", type=float, default=5.0, help="seconds between two switches")
    parser.add_argument("--replicas", type=int, default=1, help="of switch")
    parser.add_argument("--iterations", type=int, default=256, help="masks per decision (overload)")
    parser.add_argument("--hidden", type=int, default=2048, help="hidden units of the core (overload)")
    parser.add_argument("--deadline-ms", type=float, default=250.0, help="of overload")
    options = parser.parse_args(arguments)
    if options.minutes is not None:
        options.seconds = 60.0 * options.minutes
    if options.rate is None:
        options.rate = 100.0 if options.minutes is None else _LONG_RATE
    broken = False
    for name in SCENARIOS if options.scenario == "all" else [options.scenario]:
        with tempfile.TemporaryDirectory() as folder:
            row, must = SCENARIOS[name](options, Path(folder))
        print(f"{markdown(name, row, must)}\n", flush=True)
        for line in must:
            print(f"  BROKEN: {line}", file=sys.stderr, flush=True)
        broken |= bool(must)
    print(f"{options.seconds:g} s each, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())

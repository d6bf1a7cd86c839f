"""What the gate's promise is worth on markets that its calibration never saw.

    python -m benchmarks.gate --bundle runs/quickstart/bundle
    python -m benchmarks.gate --bundle runs/quickstart/bundle --short

The bundle's networks are kept, its calibration is thrown away and made again.

`easy`: temperature and threshold from the open gate's trades on some markets (`--calibrate`), the threshold proved
in sessions behind the gate on the same markets; then other markets (`--judge`) are traded with that gate:
precision with its exact 95 % interval against the promise, and the gate's lift over random rejection among the
open gate's trades (algospace.analysis.gate_report).

`martingale`: 10,000 opportunities of random direction, put into the mouths of all three voters with a flat
account; execution, M-RMS, limits and gate are asked as ever. `own`: the gate as calibrated on such markets,
which it shuts: nothing passes a shut gate; `foreign`: the gate of `easy`, which was never told that the market
changed; `corrected`: the same, told after every trade of its market how it ended (the online correction, as in
sessions and for requests that bring its level); `open`: no gate, what the others are measured by.

Sessions run side by side, in chunks that start flat.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import beta, fisher_exact

from agents.calibration import AdaptiveConformal, Calibration, calibrate, precision_bound, prove_promise
from agents.gate import Gate, GateConfig, Verdict, confidences, count_votes, execution_probabilities
from algospace.analysis.gate_report import gate_report
from algospace.clock import ReplayClock
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.journal import MemoryJournal
from algospace.execution.mechanics import ACCOUNT_DTYPE, open_account
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.features import build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import assemble
from algospace.marketdata.synthetic import generate, scenario_named
from algospace.types import AnyArray, BoolArray, FloatArray, IntArray
from envs.core_kernels import EXECUTE
from serving.batch import LIMIT_NAMES, after_limits
from serving.bundle import Bundle, load_bundle
from serving.desk import Desk
from serving.policy import CHUNK, BundlePolicy

_LONGEST_TRADE = 100


class Trades(NamedTuple):
    """Trades of sessions: scores (N, K) of the decisions that opened them, gains, net results."""

    raw: FloatArray
    gained: BoolArray
    net: FloatArray


class Desks:
    """One team over one market, N decisions at a time; embeddings and proposals are computed once."""

    def __init__(self, bundle: Bundle, table: MarketTable) -> None:
        self.bundle, self.table = bundle, table
        self.policy = BundlePolicy(bundle, table)
        chunks = [self.policy._embed(first) for first in range(0, len(table), CHUNK)]
        self.embedded, self.regime, self.proposals = (
            np.concatenate([getattr(chunk, name) for chunk in chunks])[:len(table)]
            for name in ("embedded", "regime", "proposals"))
        self._desks: dict[int, Desk] = {}

    def decide(self, rows: IntArray, accounts: AnyArray, gate: Gate,
               forced: IntArray | None = None) -> list[tuple[Decision, Verdict | None]]:
        """Decisions at `rows` for as many accounts; `forced` (N,) puts a direction into all voters' mouths.

        A way of its own because of that, and because the scores behind the verdicts, which a batch does not keep,
        are what a calibration is fitted on; a test compares it with the policy.
        """
        table, heads = self.table, self.policy.decider.heads
        desk = self._desks.setdefault(rows.size, Desk(self.bundle, rows.size))
        observed = desk.observe(table.close[rows], table.atr[rows], table.clock[rows], accounts)
        context = np.concatenate((self.regime[rows], np.asarray(table.synergy[rows], np.float32), observed), 1)
        starts = heads.starts(np.array([self.policy.seed_of(int(row)) for row in rows], np.uint64))
        votes = [count_votes(logits) for logits in heads.votes(self.embedded[rows], context, starts)]
        if forced is not None:
            votes = [vote._replace(chosen=np.full(3, way + 1), direction=int(way), agreeing=np.ones(3, np.bool_))
                     for vote, way in zip(votes, forced, strict=True)]
        chosen = np.array([vote.chosen for vote in votes], np.int8)
        offers = desk.vote(chosen, self.proposals[rows], True)
        answers = heads.execution(chosen, offers.encoded, context, starts, offers.allowed, offers.asked)
        found: list[tuple[Decision, Verdict | None]] = []
        for i, vote in enumerate(votes):
            if not offers.asked[i]:
                found.append((Decision(Reason.NO_OPPORTUNITY, vote.direction, 0.0, RiskProposal(0, 0, 0), {}, {}),
                              None))
                continue
            verdict = gate.decide(vote, execution_probabilities(answers[i]))
            contracts, stop, target = offers.orders[i].tolist()
            code = int(offers.limits[i])
            reason = after_limits(verdict.reason, vote.direction, float(desk.held[i]), contracts, code != 0,
                                  bool(offers.allowed[i, EXECUTE]))
            proposal = RiskProposal(contracts, stop, target, LIMIT_NAMES[code])
            found.append((Decision(reason, vote.direction, verdict.confidence, proposal, {}, {}), verdict))
        return found

    def trades(self, gate: Gate, chunks: int) -> Trades:
        """Sessions over `chunks` equal parts of the market, side by side."""
        table, env = self.table, self.bundle.manifest.env
        first = table.first_decision
        length = (len(table) - 1 - first) // chunks
        starts = first + length * np.arange(chunks)
        answers: list[_Answer] = [_Answer() for _ in starts]
        sessions = [Session(ReplayClock(), TableFeed(table, int(start), int(start) + length), self._venue(),
                            answer, env.limits, MemoryJournal(), reverse=env.reverse,
                            initial_equity=env.initial_equity)
                    for start, answer in zip(starts, answers, strict=True)]
        feeds = [iter(session.feed) for session in sessions]
        for step in range(length):
            bars = [next(feed) for feed in feeds]
            for session, bar in zip(sessions, bars, strict=True):
                session.clock.set(bar.ts_close)  # type: ignore[attr-defined]
                session.on_bar(bar._replace(decision=False))
            asked = np.flatnonzero([bar.decision for bar in bars])
            if asked.size == 0:
                continue
            accounts = np.array([sessions[i].account[0] for i in asked], ACCOUNT_DTYPE)
            decided = self.decide(starts[asked] + step, accounts, gate)
            for i, (decision, verdict) in zip(asked, decided, strict=True):
                answers[i].decision = decision
                if decision.reason is Reason.EXECUTE and verdict is not None:
                    answers[i].raw[bars[i].row] = verdict.raw
                sessions[i]._decide(bars[i])
        raw, net = [], []
        for session, answer in zip(sessions, answers, strict=True):
            for trade in session.result().trades:
                raw.append(answer.raw[int(trade["entry_row"]) - 1])
                net.append(float(trade["net_pnl"]))
        profit = np.array(net)
        return Trades(np.array(raw).reshape(len(raw), gate.config.iterations), profit > 0.0, profit)

    def _venue(self) -> SimulatedVenue:
        env = self.bundle.manifest.env
        return SimulatedVenue(self.bundle.instrument, env.slippage_ticks, env.commission, env.intrabar)

    def inject(self, count: int, gate: Gate, seed: int, correction: AdaptiveConformal | None = None) -> int:
        """How many of `count` opportunities of random direction pass; with a `correction` each trade that passes
        is played out (bracket, or 100 bars) and its outcome told when it is known; it begins anew here."""
        table = self.table
        if correction is not None:
            correction.reset()  # a market is a session: BundlePolicy begins each anew
        rng = np.random.default_rng(seed)
        usable = np.flatnonzero(table.decision[:len(table) - _LONGEST_TRADE - 2])
        rows = usable[np.linspace(0, usable.size - 1, count).round().astype(np.int64)]
        ways = rng.choice((-1, 1), count)
        open_gate = Gate(gate.config, gate.temperature, 0.0)
        waiting: list[tuple[int, bool]] = []
        passed = 0
        for first in range(0, count, 256):
            part = rows[first:first + 256]
            accounts = np.zeros(part.size, ACCOUNT_DTYPE)
            for account, row in zip(accounts, part, strict=True):
                open_account(account, self.bundle.manifest.env.initial_equity, float(table.close[row]),
                             int(table.day[row]))
            decided = self.decide(part, accounts, open_gate, ways[first:first + 256])
            for row, (decision, _) in zip(part.tolist(), decided, strict=True):
                if correction is not None:
                    for _, gained in sorted(known for known in waiting if known[0] <= row):
                        correction.update(gained)
                    waiting = [known for known in waiting if known[0] > row]
                limit = gate.threshold if correction is None else correction.threshold
                if decision.reason is Reason.EXECUTE and decision.confidence >= limit:
                    passed += 1
                    if correction is not None:
                        waiting.append(self._outcome(row, decision))
        return passed

    def _outcome(self, row: int, decision: Decision) -> tuple[int, bool]:
        """(row in which it is known, gained) of a trade on its own."""
        size = _LONGEST_TRADE + 2
        want, orders = np.zeros(size), np.zeros(size, np.bool_)
        want[0] = decision.direction * decision.proposal.contracts
        orders[[0, -2]] = True
        table = dataclasses.replace(self.table, decision=np.ones(len(self.table), np.bool_))
        result = run_precomputed(table, row, row + size, OrderArrays.build(
            want, orders, decision.proposal.stop_distance, decision.proposal.target_distance), self._venue())
        trade = result.trades[0]
        return int(trade["exit_row"]), bool(trade["net_pnl"] > 0.0)


class _Answer:
    """The policy of a session that is asked elsewhere."""

    def __init__(self) -> None:
        self.decision: Decision | None = None
        self.raw: dict[int, FloatArray] = {}

    def decide(self, row: int, account: Any) -> Decision:
        assert self.decision is not None
        return self.decision


def market(bundle: Bundle, scenario: str, seed: int, bars: int) -> MarketTable:
    """A synthetic market as the bundle sees it."""
    made = generate(scenario_named(scenario), seed, bars)
    features = build(made.bars, bundle.instrument, bundle.manifest.features)
    return assemble(features, bundle.schema, bundle.instrument)


def joined(parts: list[Trades]) -> Trades:
    """Trades of several markets, one after another."""
    return Trades(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def prove(fitted: Calibration, trades: Trades, desks: list[Desks], config: GateConfig, chunks: int) -> Calibration:
    """The threshold whose promise holds in sessions behind the gate, as training finds it."""

    def behind(gate: Gate) -> BoolArray:
        gained = joined([desk.trades(gate, chunks) for desk in desks]).gained
        count, gains = gained.size, int(gained.sum())
        print(f"  threshold {gate.threshold:.4f}: {gains / max(count, 1):.1%} of {count} trades behind the gate, "
              f"at least {precision_bound(gains, count, config):.1%}", flush=True)
        return gained

    return prove_promise(fitted, trades.raw, trades.gained, config, behind)


def main() -> None:
    """Calibrate, judge, print."""
    args = _arguments()
    bundle = load_bundle(args.bundle)
    config = bundle.manifest.gate.model_copy(update={"promised_precision": args.promise})
    bundle = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(
        update={"calibration": None, "gate": config}))
    bars, chunks = (6_000, 20) if args.short else (args.bars, 40)
    started = time.perf_counter()
    fitted = easy(bundle, args, config, bars, chunks)
    martingale(bundle, args, config, bars, chunks, fitted)
    print(f"\n{time.perf_counter() - started:.0f} s; bundle {bundle.id[:12]}, {bars:,} bars a market")


def easy(bundle: Bundle, args: argparse.Namespace, config: GateConfig, bars: int, chunks: int) -> Calibration:
    """Calibrate on some markets, judge on others."""
    print(f"easy: calibrated on {args.calibrate}, judged on {args.judge}", flush=True)
    desks = [Desks(bundle, market(bundle, "easy", seed, bars)) for seed in args.calibrate]
    trades = joined([desk.trades(Gate(config, 1.0, 0.0), chunks) for desk in desks])
    first = calibrate(trades.raw, trades.gained, config)
    print(f"  {trades.gained.size} trades with the gate open, {trades.gained.mean():.1%} gained; temperature "
          f"{first.temperature:.2f}, {first.statement}", flush=True)
    fitted = prove(first, trades, desks, config, chunks)
    print(f"  {fitted.statement}", flush=True)
    gate = Gate(config, fitted.temperature, fitted.threshold)
    opened, behind = [], []
    for seed in args.judge:
        desk = Desks(bundle, market(bundle, "easy", seed, bars))
        opened.append(desk.trades(Gate(config, 1.0, 0.0), chunks))
        behind.append(desk.trades(gate, chunks))
        print(f"  market {seed}: {behind[-1].gained.sum()} of {behind[-1].gained.size} trades gained behind the "
              f"gate, {opened[-1].gained.sum()} of {opened[-1].gained.size} with it open", flush=True)
    gated, everything = joined(behind), joined(opened)
    n, wins = gated.gained.size, int(gated.gained.sum())
    if n:
        low = beta.ppf(0.025, wins, n - wins + 1) if wins else 0.0
        high = beta.ppf(0.975, wins + 1, n - wins) if wins < n else 1.0
        print(f"  precision {wins / n:.1%} of {n} trades (95 %: {low:.1%} to {high:.1%}), promised "
              f"{args.promise:.1%}; net a trade {gated.net.mean():.1f} against {everything.net.mean():.1f} open")
        table = [[wins, n - wins], [int(everything.gained.sum()), int((~everything.gained).sum())]]
        print(f"  behind the gate more than with it open: {wins / n - everything.gained.mean():+.1%}, one-sided "
              f"p {fisher_exact(table, alternative='greater').pvalue:.4f} (Fisher)")
    report = gate_report(confidences(everything.raw, fitted.temperature, config.kappa), everything.gained,
                         everything.net, fitted.threshold)
    for name in ("trades", "coverage", "precision", "precision_lift", "precision_lift_low", "precision_lift_high",
                 "precision_lift_p", "p_random", "net_lift", "net_lift_low", "net_lift_high", "ece", "ece_bins",
                 "aurc", "aurc_random", "aurc_best"):
        print(f"    {name:20s} {report.get(name, 0.0):.4g}")
    return fitted


def martingale(bundle: Bundle, args: argparse.Namespace, config: GateConfig, bars: int, chunks: int,
               foreign: Calibration) -> None:
    """Injected opportunities against three gates."""
    count = 2_000 if args.short else 10_000
    seeds = args.judge[:2]
    print(f"\nmartingale: {count:,} opportunities of random direction on {seeds}", flush=True)
    calibrating = Desks(bundle, market(bundle, "martingale", args.calibrate[0], bars))
    trades = calibrating.trades(Gate(config, 1.0, 0.0), chunks)
    own = calibrate(trades.raw, trades.gained, config)
    print(f"  own: {own.statement} ({trades.gained.mean():.1%} gained)", flush=True)
    desks = [Desks(bundle, market(bundle, "martingale", seed, bars)) for seed in seeds]
    correction = AdaptiveConformal.of(foreign, config.adaptive_rate)
    wide = foreign.model_copy(update={"threshold": 0.0})
    for name, fitted, adaptive in (("own", own, None), ("foreign", foreign, None),
                                   ("corrected", foreign, correction), ("open", wide, None)):
        gate = Gate(config, fitted.temperature, fitted.threshold)
        passed = 0
        for seed, desk in zip(seeds, desks, strict=True):
            passed += desk.inject(count // len(seeds), gate, seed, adaptive)
        print(f"  {name:10s} {passed:6d} of {count} pass: {passed / count:.2%}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("runs/quickstart/bundle"))
    parser.add_argument("--calibrate", type=int, nargs="+", default=[701, 702, 703], help="tuning markets")
    parser.add_argument("--judge", type=int, nargs="+", default=[704, 705], help="markets not used so far")
    parser.add_argument("--bars", type=int, default=12_000, help="per market")
    parser.add_argument("--promise", type=float, default=GateConfig().promised_precision)
    parser.add_argument("--short", action="store_true", help="smaller markets, fewer opportunities")
    return parser.parse_args()


if __name__ == "__main__":
    main()

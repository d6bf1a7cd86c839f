"""The honest harness: what a training is worth on markets it has never seen, and whether the judge can be trusted.

    evaluate_run      a finished run on many unseen markets
    evaluate_config   one configuration trained with several seeds, each judged on the same unseen markets
    run_control       the same configuration where nothing can be learnt (martingale), or where the answer is
                      shown (oracle): a harness that passes only the first kind of claim proves nothing

Every function returns a JSON-able document; `failures` lists in words what is wrong, empty if all is well.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from algospace import __version__
from algospace.analysis.unit_judgement import Judgement
from algospace.errors import ConfigError
from algospace.marketdata.synthetic import scenario_named
from training.config import RunConfig
from training.evaluation.config import (
    CONTROLS,
    EVALUATION,
    UNSEEN_SEEDS,
    Control,
    EvaluateConfig,
    Evaluation,
    Judging,
    check,
)
from training.evaluation.markets import Experts, judge_team, make_market
from training.evaluation.summary import (
    failures_of_martingale,
    failures_of_oracle,
    failures_of_run,
    fraction_interval,
    oracle_figures,
    summary,
)
from training.evaluation.trainings import (
    Seeds,
    finished_run,
    own_seeds,
    seeded,
    synthetic_market_of,
    train_core,
    trained_run,
)
from training.team_training import TrainedTeam, load_team
from training.tracking import git_commit


def evaluate_run(run_dir: Path | str, seeds: Sequence[int] = UNSEEN_SEEDS, bars: int = 260_000,
                 scenario: str | None = None, *, judging: Judging | None = None,
                 console: Console | None = None) -> dict[str, Any]:
    """A finished run's core on fresh synthetic markets, one of `bars` bars per seed.

    scenario: by default the one it was trained on. judging: in place of seeds, bars and scenario. ConfigError for
    an unfinished run and for seeds that it has seen.
    """
    run_dir, console = Path(run_dir), console or Console(stderr=True)
    config = finished_run(run_dir)
    judging = judging or Judging(seeds=tuple(seeds), bars=bars, scenario=scenario)
    check(config, (), judging)
    torch.set_num_threads(config.torch_threads)
    console.print(f"evaluate: {run_dir}")
    team = load_team(run_dir / "core" / "team")
    judged = _judged(config, Experts(run_dir), {"run": team}, judging, run_dir / EVALUATION, console)["run"]
    document = _head(config, judging) | {"run_dir": str(run_dir), "trained_on": _trained_on(config),
                                         **summary(judged, judging)}
    return document | {"failures": failures_of_run(config.name, document, judging)}


def evaluate_config(config: RunConfig, train_seeds: Sequence[int] = (), eval_seeds: Sequence[int] = UNSEEN_SEEDS,
                    *, out: Path, bars: int = 260_000, scenario: str | None = None, share_experts: bool = True,
                    judging: Judging | None = None, console: Console | None = None) -> dict[str, Any]:
    """Train `config` once per training seed below `out` and judge every core on the same unseen markets.

    train_seeds: seed k trains with seed k on market seed k; empty: the configuration's own two seeds.
    share_experts: RDE and M-RMS of the first seed serve all. Finished trainings are reused.
    """
    console = console or Console(stderr=True)
    judging = judging or Judging(seeds=tuple(eval_seeds), bars=bars, scenario=scenario)
    check(config, tuple(train_seeds), judging)
    torch.set_num_threads(config.torch_threads)
    plan = _plan(config, train_seeds)
    base = trained_run(seeded(config, plan[0]), out / _name(plan[0]), console)
    judged: dict[str, list[Judgement]] = {}
    if share_experts:
        experts = Experts(base)
        teams = {_name(plan[0]): load_team(base / "core" / "team")}
        for seeds in plan[1:]:
            teams[_name(seeds)] = train_core(config, experts, seeds, out / f"core-{_name(seeds)}", console)
        judged = _judged(config, experts, teams, judging, out / EVALUATION, console)
    else:
        for seeds in plan:
            folder = trained_run(seeded(config, seeds), out / _name(seeds), console)
            one = {_name(seeds): load_team(folder / "core" / "team")}
            judged |= _judged(config, Experts(folder), one, judging, folder / EVALUATION, console)
    return _many(config, judging, judged, share_experts)


def run_control(config: RunConfig, kind: Control, *, out: Path, eval_seeds: Sequence[int] = UNSEEN_SEEDS,
                bars: int = 260_000, train_seed: int | None = None, experts_run: Path | None = None,
                share_experts: bool = True, judging: Judging | None = None,
                console: Console | None = None) -> dict[str, Any]:
    """Train the same configuration on a control and judge it; the verdict is in `failures`.

    martingale: no edge anywhere, the team must stay out and earn nothing significant. oracle: the next bar's
    return is one of its columns, the team must leave the limit far behind and the alarm must ring on every market.
    experts_run: a run whose RDE and M-RMS serve; by default those of this configuration are trained below `out`.
    Without `share_experts` the martingale control trains its own on the martingale.
    """
    if kind not in CONTROLS:
        raise ConfigError(f"unknown control '{kind}'; known: {', '.join(CONTROLS)}")
    console = console or Console(stderr=True)
    judging = judging or Judging(seeds=tuple(eval_seeds), bars=bars)
    seeds = _plan(config, () if train_seed is None else (train_seed,))[0]
    market = "martingale" if kind == "martingale" else synthetic_market_of(config).scenario
    judging = judging.model_copy(update={"scenario": market})
    check(config, (seeds.market,), judging)
    torch.set_num_threads(config.torch_threads)
    console.print(f"control: {kind}")
    experts, team = _control_team(config, kind, seeds, out, experts_run, share_experts, console)
    judged = _judged(config, experts, {kind: team}, judging, out / f"{EVALUATION}-{kind}", console,
                     oracle=kind == "oracle")[kind]
    document = _head(config, judging) | {"control": kind, "env_steps": config.core.mappo.env_steps,
                                         "seeds": seeds._asdict(), **summary(judged, judging)}
    if kind == "oracle":
        return document | oracle_figures(document) | {"failures": failures_of_oracle(document, judging)}
    return document | {"failures": failures_of_martingale(document, judging)}


def evaluate(evaluation: Evaluation, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Everything an evaluation asks for: trainings, then controls."""
    plan, console = evaluation.plan, console or Console(stderr=True)
    document = evaluate_config(evaluation.run, plan.train_seeds, out=out, share_experts=plan.share_experts,
                               judging=plan.judging, console=console)
    controls = {kind: _control_of(evaluation, plan, kind, out, console) for kind in plan.controls}
    failures = [*document["failures"], *(line for found in controls.values() for line in found["failures"])]
    return document | {"name": plan.name, "plan_hash": plan.digest(), "controls": controls, "failures": failures}


def _control_of(evaluation: Evaluation, plan: EvaluateConfig, kind: Control, out: Path,
                console: Console) -> dict[str, Any]:
    base = out / _name(_plan(evaluation.run, plan.train_seeds)[0])
    return run_control(evaluation.control_run, kind, out=out, train_seed=(*plan.train_seeds, None)[0],
                       experts_run=base, share_experts=plan.share_experts, judging=evaluation.control_judging,
                       console=console)


def _control_team(config: RunConfig, kind: Control, seeds: Seeds, out: Path, experts_run: Path | None,
                  share_experts: bool, console: Console) -> tuple[Experts, TrainedTeam]:
    if kind == "martingale" and not share_experts:
        folder = trained_run(seeded(config, seeds, "martingale"), out / "run-martingale", console)
        return Experts(folder), load_team(folder / "core" / "team")
    base = experts_run or trained_run(seeded(config, seeds), out / _name(seeds), console, ("rde", "mrms"))
    experts = Experts(base)
    scenario = "martingale" if kind == "martingale" else None
    return experts, train_core(config, experts, seeds, out / f"core-{kind}", console, scenario, kind == "oracle")


def _plan(config: RunConfig, train_seeds: Sequence[int]) -> list[Seeds]:
    return [Seeds(k, k) for k in train_seeds] or [own_seeds(config)]


def _name(seeds: Seeds) -> str:
    return f"seed-{seeds.training}" + ("" if seeds.training == seeds.market else f"-{seeds.market}")


def _judged(config: RunConfig, experts: Experts, teams: dict[str, TrainedTeam], judging: Judging, folder: Path,
            console: Console, oracle: bool = False) -> dict[str, list[Judgement]]:
    """Every team on every judging market; a market is built once and removed when all have been judged on it."""
    scenario = scenario_named(judging.scenario or synthetic_market_of(config).scenario)
    judged: dict[str, list[Judgement]] = {name: [] for name in teams}
    for seed in judging.seeds:
        place = folder / f"{scenario.name}-{seed}"
        try:
            market = make_market(config, experts, scenario, seed, judging.bars, place, oracle=oracle)
            for name, team in teams.items():
                found = judge_team(team, market)
                judged[name].append(found)
                console.print(_line(name, scenario.name, found))
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return judged


def _line(name: str, scenario: str, found: Judgement) -> str:
    fraction = found.fraction()
    share = "no limit" if fraction is None else f"{fraction:6.1%} of the limit"
    alarm = "  LEAK ALARM" if found.verdict.leaking else ""
    return (f"  {name} on {scenario} {found.seed}: score {found.policy.score:+.4f} ticks/bar, {share}, exposure "
            f"{found.policy.exposure:.1%}{alarm}")


def _head(config: RunConfig, judging: Judging) -> dict[str, Any]:
    return {"name": config.name, "version": __version__, "config_hash": config.digest(),
            "git_commit": git_commit(), "scenario": judging.scenario or synthetic_market_of(config).scenario,
            "judging": judging.model_dump(mode="json")}


def _trained_on(config: RunConfig) -> dict[str, Any]:
    market = synthetic_market_of(config)
    return {"scenario": market.scenario, "seed": config.seed, "market_seed": market.train_seed,
            "bars": market.train_bars, "env_steps": config.core.mappo.env_steps}


def _many(config: RunConfig, judging: Judging, judged: dict[str, list[Judgement]],
          share_experts: bool) -> dict[str, Any]:
    """Several trainings: each one's summary, all together, and the interval over trainings."""
    runs = {name: summary(found, judging) for name, found in judged.items()}
    failures = [line for name, run in runs.items() for line in failures_of_run(
        f"{config.name}, {name}", run, judging.model_copy(update={"least_fraction": None}))]
    if len(runs) == 1:
        whole = next(iter(runs.values()))
    else:
        whole = summary([found for team in judged.values() for found in team], judging)
        means = [None if run["fraction_of_limit"] is None else run["fraction_of_limit"]["estimate"]
                 for run in runs.values()]
        interval = fraction_interval(means, judging)
        whole["fraction_of_limit"] = None if interval is None else {**interval.as_dict(), "over": "training seeds"}
    failures += failures_of_run(config.name, {**whole, "markets": []}, judging)
    return _head(config, judging) | {"trained_on": _trained_on(config), "shared_experts": share_experts,
                                     "runs": runs, **whole, "failures": failures}

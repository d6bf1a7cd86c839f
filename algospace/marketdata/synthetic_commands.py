"""`algospace data synth`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from algospace.config import parse_config
from algospace.errors import ConfigError
from algospace.marketdata.synthetic import SCENARIOS, SyntheticMarket, generate, scenario_named, write_market
from algospace.marketdata.synthetic_tick_files import write_ticks
from algospace.marketdata.synthetic_ticks import TickOptions, plan_ticks

_EXAMPLE = "Example: algospace data synth --scenario easy --seed 1 --bars 500000 --out runs/easy-1"


def add_synth_command(data_app: typer.Typer) -> None:
    """Attach `synth` to the `data` group."""
    data_app.command("synth", epilog=_EXAMPLE)(synth)


def synth(
    scenario: Annotated[str, typer.Option(help=f"One of {', '.join(SCENARIOS)}.")],
    out: Annotated[Path, typer.Option(help="Folder for bars or ticks.parquet, truth.parquet, manifest.json.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same market.")] = 0,
    bars: Annotated[int, typer.Option(help="Number of 5-minute bars.")] = 100_000,
    resolution: Annotated[str, typer.Option(help="5m, or 1m or ticks, which aggregate to the same bars.")] = "5m",
    tick_options: Annotated[list[str] | None, typer.Option(
        "--tick-option", help="key=value of TickOptions, with ticks: imbalance=0.1, latency_ms=2 ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")] = False,
) -> None:
    """Write a synthetic market with its truth: regimes, beliefs, expected returns, the limit's position."""
    _require_replaceable(out)
    if resolution not in ("5m", "1m", "ticks"):
        raise ConfigError(f"--resolution {resolution}: choose 5m, 1m or ticks")
    if tick_options and resolution != "ticks":
        raise ConfigError(f"--tick-option {tick_options[0]}: works with --resolution ticks only")
    if resolution == "ticks":
        options = parse_config(TickOptions, {}, tick_options or (), source="--tick-option")
        summary = _write_ticks(scenario, seed, bars, options, out)
    else:
        market = generate(scenario_named(scenario), seed, bars, "1m" if resolution == "1m" else "5m")
        write_market(market, out)
        summary = _summary(market, out)
    typer.echo(json.dumps(summary) if as_json else "  ".join(f"{k} {v}" for k, v in summary.items()))


def _write_ticks(scenario: str, seed: int, bars: int, options: TickOptions, out: Path) -> dict[str, object]:
    plan = plan_ticks(scenario_named(scenario), seed, bars, options)
    rows = write_ticks(plan, out)
    return {"scenario": plan.scenario.name, "seed": seed, "base_bars": bars, "rows": rows,
            "imbalance": plan.options.imbalance, "contracts": len(plan.contracts),
            "limit": plan.truth.belief is not None, "out": str(out)}


def _require_replaceable(out: Path) -> None:
    """A folder is replaced only if it is empty or an earlier synthetic market."""
    if out.is_dir() and any(out.iterdir()) and not (out / "truth.parquet").is_file():
        raise ConfigError(f"{out}: the folder holds something else; name a new one")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder")


def _summary(market: SyntheticMarket, out: Path) -> dict[str, object]:
    return {"scenario": market.scenario.name, "seed": market.seed, "base_bars": len(market.truth),
            "rows": len(market.bars), "first_close": float(market.bars.close[0]),
            "last_close": float(market.bars.close[-1]), "limit": market.scenario.has_limit, "out": str(out)}

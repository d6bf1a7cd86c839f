"""Command `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from algospace.errors import ConfigError

if TYPE_CHECKING:
    from training.config import RunConfig

RUNS = Path("runs")


def evaluate(
    config: Annotated[Path | None, typer.Option(
        "--config", help="an evaluation (configs/evaluate/) or a run's configuration")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value of the run")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="folder of a finished run, judged as it is")] = None,
    seeds: Annotated[str | None, typer.Option(
        "--seeds", help="judging markets: 9001-9005 or 9001,9003")] = None,
    bars: Annotated[int | None, typer.Option("--bars", min=10_000, help="bars of each judging market")] = None,
    scenario: Annotated[str | None, typer.Option("--scenario", help="default: the one trained on")] = None,
    train_seeds: Annotated[str | None, typer.Option("--train-seeds", help="train once per seed: 1,2,3")] = None,
    control: Annotated[list[str] | None, typer.Option(
        "--control", help="martingale or oracle, repeatable: run only these")] = None,
    share_experts: Annotated[bool | None, typer.Option(
        "--share-experts/--own-experts", help="RDE and M-RMS of the first training serve all")] = None,
    out: Annotated[Path | None, typer.Option(
        "--out", help="default: RUN/evaluation or runs/<name>-evaluation")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Judge a run, or a configuration over several training seeds, on markets it has never seen.

    Exit code 1 if the leak alarm rings or a control fails.
    Example: algospace evaluate --run runs/quickstart --seeds 9001-9005
    """
    from algospace.config import parse_config
    from training.evaluation.config import Judging
    from training.evaluation.report import page, record, write_evaluation

    console = Console(stderr=True)
    if (config is None) == (run is None):
        raise ConfigError("give exactly one of --config and --run")
    judging = {name: value for name, value in (("seeds", None if seeds is None else seed_list(seeds, "--seeds")),
                                               ("bars", bars), ("scenario", scenario)) if value is not None}
    if run is not None:
        if overrides or train_seeds is not None:
            raise ConfigError("--run judges a finished run; overrides and --train-seeds belong to --config")
        chosen = parse_config(Judging, judging, source="evaluate")
        document, used, folder = _of_run(run, chosen, control or [], out, console)
        parent = _mlflow_run(run)
    else:
        assert config is not None
        changes: dict[str, Any] = {"judging": judging}
        if seeds is not None:
            changes["control_seeds"] = ()
        if train_seeds is not None:
            changes["train_seeds"] = seed_list(train_seeds, "--train-seeds")
        if share_experts is not None:
            changes["share_experts"] = share_experts
        document, used, folder = _of_config(config, tuple(overrides or ()), changes, control or [], out, console)
        parent = None
    written = write_evaluation(document, folder)
    record(document, used, written, run or folder, parent)
    typer.echo(json.dumps(document, indent=2) if as_json else page(document))
    console.print(f"report: {', '.join(str(path) for path in written if path.suffix == '.md')}")
    if document["failures"]:
        raise typer.Exit(1)


def seed_list(text: str, option: str) -> tuple[int, ...]:
    """`9001-9003,9007` -> (9001, 9002, 9003, 9007); ConfigError names the option."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"{option} {text}: expected seeds as 9001-9005 or 9001,9003")
        stop = int(last) if dash else int(first)
        if not 0 <= stop - int(first) < 1_000:
            raise ConfigError(f"{option} {text}: '{part.strip()}' is no range of at most 1,000 seeds, low to high")
        found.extend(range(int(first), stop + 1))
    return tuple(found)


def _of_run(run: Path, judging: Any, controls: list[str], out: Path | None,
            console: Console) -> tuple[dict[str, Any], RunConfig, Path]:
    from training.evaluation.config import EVALUATION
    from training.evaluation.harness import evaluate_run
    from training.evaluation.trainings import finished_run

    used, folder = finished_run(run), out or run / EVALUATION
    if not controls:
        return evaluate_run(run, judging=judging, console=console), used, folder
    return _controls(used, controls, folder, judging, console, experts_run=run), used, folder


def _of_config(path: Path, overrides: tuple[str, ...], changes: dict[str, Any], controls: list[str],
               out: Path | None, console: Console) -> tuple[dict[str, Any], RunConfig, Path]:
    from training.evaluation.config import load_evaluation
    from training.evaluation.harness import evaluate as evaluate_all

    evaluation = load_evaluation(path, overrides, **changes)
    plan, folder = evaluation.plan, out or RUNS / f"{evaluation.plan.name}-evaluation"
    if not controls:
        return evaluate_all(evaluation, folder, console), evaluation.run, folder
    used = evaluation.control_run
    document = _controls(used, controls, folder, evaluation.control_judging, console,
                         train_seed=(*plan.train_seeds, None)[0], share_experts=plan.share_experts)
    return document, used, folder


def _controls(config: RunConfig, kinds: list[str], folder: Path, judging: Any, console: Console,
              **options: Any) -> dict[str, Any]:
    from training.evaluation.config import CONTROLS
    from training.evaluation.harness import run_control

    unknown = [kind for kind in kinds if kind not in CONTROLS]
    if unknown:
        raise ConfigError(f"--control {unknown[0]}: known controls are {', '.join(CONTROLS)}")
    chosen = [kind for kind in CONTROLS if kind in kinds]
    found = {kind: run_control(config, kind, out=folder, judging=judging, console=console, **options)
             for kind in chosen}
    first = next(iter(found.values()))
    head = {name: first[name] for name in ("name", "version", "config_hash", "git_commit", "judging")}
    return head | {"controls": found, "failures": [line for one in found.values() for line in one["failures"]]}


def _mlflow_run(run: Path) -> str | None:
    """The MLflow run of a run folder's pipeline, under which its evaluation is kept."""
    path = run / "run.json"
    known = json.loads(path.read_text()).get("mlflow_run_id") if path.is_file() else None
    return str(known) if known else None

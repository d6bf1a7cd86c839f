"""Commands of training. What a command needs is imported when it is called: `algospace --help` stays quick."""

from __future__ import annotations

import typer

from training.commands import evaluate, promotion, runs, tracking, tune, walk_forward


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    app.command("train")(runs.train)
    app.command("backtest")(runs.backtest)
    app.command("evaluate")(evaluate.evaluate)
    app.command("export")(runs.export)
    app.command("select")(runs.select)
    app.command("tune")(tune.tune)
    app.command("promote")(promotion.promote)
    app.command("quickstart")(runs.quickstart)
    app.command("walk-forward")(walk_forward.walk_forward)
    app.add_typer(tracking.tracking, name="tracking")

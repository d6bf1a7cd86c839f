"""Sub-commands that need neither torch nor Ray: `data`, `features` and `check`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    from algospace.features.bar_commands import add_bars_command
    from algospace.features.commands import add_features_command
    from algospace.marketdata.augment_commands import add_augment_command
    from algospace.marketdata.import_commands import add_import_command
    from algospace.marketdata.synthetic_commands import add_synth_command
    from algospace.trust.commands import add_check_commands

    data_app = typer.Typer(no_args_is_help=True, help="Import market data, make and vary synthetic markets.")
    add_import_command(data_app)
    add_bars_command(data_app)
    add_synth_command(data_app)
    add_augment_command(data_app)
    app.add_typer(data_app, name="data")
    add_features_command(app)
    add_check_commands(app)

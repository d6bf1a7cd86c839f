"""What several commands share: options, and a spinner for long work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")]
Symbol = Annotated[str, typer.Option("--instrument", help="Symbol, for example ES.")]
Own = Annotated[list[Path] | None, typer.Option("--indicator", help="File of an own indicator; repeatable.")]
Library = Annotated[str | None, typer.Option("--library", help="Library columns, with commas, or all.")]


def with_progress(work: Callable[[Callable[[str], None]], Any], quiet: bool) -> Any:
    """Run `work(say)` under a spinner on the terminal; `say(name)` shows what is being read."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return work(lambda name: None)
    with console.status("reading") as status:
        return work(lambda name: status.update(f"reading {name}"))

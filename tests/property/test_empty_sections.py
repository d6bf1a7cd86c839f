"""A section without content, like `judging:`, in any place of any kind of configuration: one clear line and exit
code 2, or it is accepted as what it means; never a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from algospace.config import load_config
from algospace.errors import AlgoSpaceError
from tests.command_line import Runner, runner
from tests.conftest import REPOSITORY
from training.config import RunConfig
from training.evaluation.config import load_evaluation
from training.sweep.config import load_tune
from training.walk_forward.config import WalkForwardRun

CONFIGS = REPOSITORY / "configs"
KINDS: dict[str, Callable[[Path], Any]] = {
    "train": lambda path: load_config(RunConfig, path), "tune": load_tune, "evaluate": load_evaluation,
    "walk": lambda path: load_config(WalkForwardRun, path)}
SECTIONS = {
    "train": ("features", "matrices", "rde", "mrms", "core", "gate", "backtest", "tracking"),
    "tune": ("asha", "pbt"), "evaluate": ("judging", "controls"),
    "walk": ("features", "matrices", "rde", "mrms", "core", "gate", "walk_forward")}
"""Sections that files may leave to their defaults, and so do not name."""
FILES = [(kind, path) for kind in KINDS for path in sorted((CONFIGS / kind).glob("*.yaml"))] + [
    ("train", CONFIGS / "quickstart.yaml"), ("evaluate", CONFIGS / "quickstart.yaml")]


def emptied(values: dict[str, Any], more: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key of the nested mapping in turn, and `more` of its top, without its content."""
    for key, value in values.items():
        yield key, {**values, key: None}
        if isinstance(value, dict):
            for inner, changed in emptied(value, ()):
                yield f"{key}.{inner}", {**values, key: changed}
    for key in more:
        if key not in values:
            yield key, {**values, key: None}


def beside(path: Path, values: dict[str, Any], folder: Path) -> Path:
    """`values` as a file in another folder; other files are named as seen from where the first one lies."""
    named = {key: str((path.parent / values[key]).resolve()) for key in ("base", "train")
             if isinstance(values.get(key), str)}
    target = folder / path.name
    target.write_text(yaml.safe_dump({**values, **named}))
    return target


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_any_section_may_be_empty_without_a_traceback(kind: str, path: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    KINDS[kind](beside(path, values, tmp_path))
    refused = {key: said for key, changed in emptied(values, SECTIONS[kind])
               if (said := refusal(KINDS[kind], beside(path, changed, tmp_path))) is not None}
    assert refused
    for key, (code, text) in refused.items():
        assert (key, code, text.count("\n")) == (key, 2, 0)
        assert text.strip()


def refusal(load: Callable[[Path], Any], path: Path) -> tuple[int, str] | None:
    """(exit code, what is said) where the file is refused; what is no refusal of ours passes through."""
    try:
        load(path)
    except AlgoSpaceError as error:
        return error.exit_code, str(error)
    return None


COMMANDS = [("evaluate", "evaluate/ci.yaml", "judging"), ("train", "quickstart.yaml", "core"),
            ("train", "quickstart.yaml", "market"), ("tune", "tune/quickstart.yaml", "space"),
            ("walk-forward", "walk/nq.yaml", "market"), ("walk-forward", "walk/nq.yaml", "walk_forward")]


@pytest.mark.parametrize(("command", "file", "section"), COMMANDS)
def test_commands_say_it_in_one_line(command: str, file: str, section: str, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from training.commands import register

    monkeypatch.chdir(tmp_path)
    call: Runner = runner(monkeypatch, capsys, register)
    path = CONFIGS / file
    config = beside(path, yaml.safe_load(path.read_text()) | {section: None}, tmp_path)
    out = ("--out", tmp_path / "out") if command == "walk-forward" else ()
    code, _, error = call(command, "--config", config, *out)
    assert code == 2
    assert error.count("\n") == 1
    assert f"{section}: the section is empty" in error
    assert list(tmp_path.iterdir()) == [config], "nothing is written"

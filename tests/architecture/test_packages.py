"""The shape of the project: packages, layers of files, configurations, commands and what is committed."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from algospace.cli import build_app
from algospace.config import FrozenConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agents", "algospace", "configs", "envs", "serving", "training")
EXPORTING = ("algospace.features", "algospace.marketdata", "algospace.execution", "algospace.risk")
MAX_LINES = 400
NOT_OURS = {"LICENSE", "constraints.txt"}
# assembled from parts, so that this file does not contain what it looks for
MACHINE_PATHS = ("/" + "work/", "/" + "tmp/", "/" + "root/", "/" + "home/")
REGISTRY_HOSTS = ("pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "artifact" + "ory",
                  "index" + "-url")


@cache
def committed_files() -> tuple[Path, ...]:
    """Tracked files that exist; the working tree without ignored files where there is no git."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: what is committed cannot be listed")
    return tuple(path for path in (ROOT / line for line in listed.splitlines()) if path.is_file())


def text_of(path: Path) -> str | None:
    """The text of a file; None for a binary one."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_imported_from_this_repository(name: str) -> None:
    """Another distribution's top-level `agents` can shadow ours."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"


def test_every_package_is_listed_in_pyproject() -> None:
    """setuptools does not discover a flat layout of several packages."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = {pattern.rstrip("*") for pattern in settings["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert listed == set(PACKAGES)
    assert set(settings["tool"]["importlinter"]["root_packages"]) == set(PACKAGES)
    on_disk = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "examples"}
    assert on_disk == set(PACKAGES)


def test_every_folder_of_code_is_a_package() -> None:
    for path in committed_files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES:
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_no_module_or_folder_is_called_data() -> None:
    """Ignore rules of packaging tools and of Ray drop such folders silently."""
    named = [p for p in committed_files() if "data" in (*p.relative_to(ROOT).parent.parts, p.stem)]
    assert not named


def test_ignore_rules_of_folders_are_anchored() -> None:
    rules = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    harmless = re.compile(r"^(/.*|\*\..+|\*\.egg-info/|__pycache__/)$")
    assert [rule for rule in rules if not harmless.match(rule)] == []


def test_files_are_short() -> None:
    lengths = {p.relative_to(ROOT): len((text_of(p) or "").splitlines())
               for p in committed_files() if p.suffix in {".py", ".yaml", ".md", ".toml"}}
    assert {str(p): n for p, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("needle", [*MACHINE_PATHS, *REGISTRY_HOSTS])
def test_no_machine_paths_or_registry_hosts_are_committed(needle: str) -> None:
    guilty = [str(path.relative_to(ROOT)) for path in committed_files()
              if path.name not in NOT_OURS and needle in (text_of(path) or "")]
    assert guilty == []


def config_files() -> Iterator[Path]:
    """Every YAML file below configs/ that is ours: cluster manifests and Prometheus have schemas of their own."""
    return iter(sorted(p for p in (ROOT / "configs").rglob("*.yaml")
                       if p.parent.name not in {"cluster", "monitoring"}))


def model_of(path: Path) -> type[FrozenConfig]:
    """The pydantic model that a configuration file must satisfy, by its folder."""
    from serving.deployment import ServeSettings
    from training.config import RunConfig
    from training.evaluation.config import EvaluateConfig
    from training.sweep.config import TuneConfig
    from training.walk_forward.config import WalkForwardRun

    models: dict[tuple[str, ...], type[FrozenConfig]] = {(): RunConfig, ("train",): RunConfig,
                                                         ("evaluate",): EvaluateConfig, ("serve",): ServeSettings,
                                                         ("tune",): TuneConfig, ("walk",): WalkForwardRun}
    folder = path.parent.relative_to(ROOT / "configs").parts
    assert folder in models, f"{path}: say here which model validates configs/{'/'.join(folder)}"
    return models[folder]


@pytest.mark.parametrize("path", config_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_configurations_satisfy_their_models(path: Path) -> None:
    config = load_config(model_of(path), path)
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert again.digest() == config.digest()


def test_training_configurations_are_named_after_their_files() -> None:
    """A run's folder is runs/<name>."""
    for path in (ROOT / "configs" / "quickstart.yaml", *sorted((ROOT / "configs" / "train").glob("*.yaml"))):
        assert load_config(model_of(path), path).model_dump()["name"] == path.stem


@pytest.mark.parametrize("name", EXPORTING)
def test_public_names_are_exported(name: str) -> None:
    """`__all__` is sorted, complete and true: every public object that the package binds from its modules."""
    package: Any = importlib.import_module(name)
    modules = {info.name for info in pkgutil.iter_modules(package.__path__)}
    bound = {key for key in vars(package) if not key.startswith("_")} - modules
    assert bound - {"annotations"} == set(package.__all__)
    assert list(package.__all__) == sorted(package.__all__, key=_isort_key)


def _isort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts `__all__`."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def leaf_commands() -> dict[str, click.Command]:
    """Every command of `algospace` that does something, by its words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield " ".join(words), command
            return
        for name, child in children.items():
            yield from walk(child, (*words, name))

    return dict(walk(typer.main.get_command(build_app()), ()))


COMMANDS = leaf_commands()


def test_the_stable_commands_exist() -> None:
    assert {"data import", "data synth", "features", "train", "backtest", "export", "serve", "quickstart"} <= set(
        COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_help_of_every_command_holds_an_example_of_it(words: str) -> None:
    command = COMMANDS[words]
    text = " ".join(part for part in (command.help, command.epilog) if part)
    assert f"Example: algospace {words}" in " ".join(text.split())


@pytest.mark.parametrize("words", COMMANDS)
def test_examples_name_options_that_exist(words: str) -> None:
    command = COMMANDS[words]
    text = " ".join(part for part in (command.help, command.epilog) if part)
    named = set(re.findall(r"(?<!\S)--[a-z-]+", text.partition("Example:")[2]))
    known = {option for parameter in command.params for option in parameter.opts}
    assert named <= known

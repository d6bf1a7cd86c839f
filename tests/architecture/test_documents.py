"""What README and docs say exists, exists: files, commands and their options, configuration keys, Python names."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from algospace.cli import build_app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CHANGELOG.md"]
MAPPED = ("agents", "algospace", "configs", "envs", "serving", "training", "benchmarks", "docs", "tests",
          "examples")
UNNAMED = {"__init__.py", "py.typed"}
CREATED = ("runs/", "market", ".venv")
"""Folders that commands create; the documents name them, a checkout does not hold them."""


def file_map() -> dict[str, str]:
    """Path -> what it is, from the README's file map."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## File map\n.*?```\n(.*?)```", text, re.S | re.M)
    assert block, "README.md has no '## File map' with a fenced block"
    entries: dict[str, str] = {}
    folder = ""
    for line in block[1].splitlines():
        name, _, words = line.strip().partition(" ")
        if not name:
            continue
        path = name if not line.startswith(" ") else folder + name
        if not line.startswith(" ") and name.endswith("/"):
            folder = name
        assert path not in entries, f"{path} is mapped twice"
        entries[path] = words.strip()
    return entries


def test_the_file_map_names_only_what_exists() -> None:
    missing = [name for name in file_map() if not (ROOT / name).exists()]
    assert missing == []
    assert [name for name in file_map() if (ROOT / name).is_dir() != name.endswith("/")] == []


def test_every_line_of_the_file_map_says_something() -> None:
    assert [name for name, words in file_map().items() if not words] == []


@pytest.mark.parametrize("package", MAPPED)
def test_the_file_map_covers_every_top_level_file(package: str) -> None:
    """Files directly in a package, and its sub-folders, each have a line."""
    mapped = set(file_map())
    found = {f"{package}/{p.name}{'/' if p.is_dir() else ''}" for p in (ROOT / package).iterdir()
             if p.name not in UNNAMED and not p.name.startswith((".", "__pycache__"))
             and (not p.is_dir() or any(q.is_file() for q in p.rglob("*") if q.suffix != ".pyc"))}
    if package in {"benchmarks", "docs", "tests"}:  # scripts are listed in docs/benchmarks.md, tests by folder
        found = {name for name in found if name.endswith("/")} if package == "tests" else set()
    assert sorted(found - mapped) == []


def shell_lines() -> list[tuple[str, str]]:
    """(document, command) of every `algospace …` line in blocks of bash."""
    lines = []
    for path in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            joined = block.replace("\\\n", " ")
            lines += [(path.name, line.split("  #")[0].strip()) for line in joined.splitlines()
                      if re.match(r"\s*algospace\s", line)]
    return lines


@pytest.mark.parametrize(("document", "line"), shell_lines())
def test_documented_commands_and_options_exist(document: str, line: str) -> None:
    words = shlex.split(line)[1:]
    command = typer.main.get_command(build_app())
    while words and getattr(command, "commands", None):
        assert words[0] in command.commands, f"{document}: no command '{words[0]}' in: {line}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= known | {"--help"}, f"{document}: {line}"
    required = {parameter.opts[0] for parameter in command.params
                if parameter.required and parameter.opts[0].startswith("--")}
    assert required <= used or "--help" in used, f"{document}: {line}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_named_files_exist(path: Path) -> None:
    """Every `code span` that is a path of this project leads somewhere."""
    spans = re.findall(r"`([\w./-]+/[\w./-]*)`", path.read_text(encoding="utf-8"))
    ours = [span for span in spans if span.split("/")[0] in MAPPED]
    assert [span for span in ours if not (ROOT / span).exists() and not span.startswith(CREATED)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_named_python_objects_exist(path: Path) -> None:
    """Every `package.module.name` in a code span can be imported."""
    packages = "algospace|envs|agents|training|serving"
    for dotted in re.findall(rf"`((?:{packages})(?:\.\w+)+)(?:\(.*?\))?`", path.read_text(encoding="utf-8")):
        if dotted.split(".")[-1] not in {"py", "commands"}:
            assert _resolves(dotted), f"{path.name}: {dotted}"


def _resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def configuration_keys() -> dict[str, FieldInfo]:
    """Every key of a run's configuration that holds a value, as `a.b.c`."""
    from training.config import RunConfig

    def walk(model: type[BaseModel], prefix: str) -> dict[str, FieldInfo]:
        keys: dict[str, FieldInfo] = {}
        for name, field in model.model_fields.items():
            candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
            sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
            for section in sections:
                keys |= walk(section, f"{prefix}{name}.")
            if not sections:
                keys[prefix + name] = field
        return keys

    return walk(RunConfig, "")


def documented_defaults() -> dict[str, str]:
    """Key -> text of its default cell, from the tables of docs/configuration.md."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    sections = [""]
    for line in text.splitlines():
        if line.startswith("## "):
            sections = [f"{name}." for name in re.findall(r"`([\w.]+)`", line)] or [""]
        row = re.match(r"\| (`[\w.]+`(?:, `[\w.]+`)*) \| ([^|]*) ?\|", line)
        if row:
            found |= {section + name: row[2].strip() for name in re.findall(r"`([\w.]+)`", row[1])
                      for section in sections}
    return found


def test_documented_configuration_keys_are_the_keys() -> None:
    """docs/configuration.md has a table row for every key of RunConfig, and for nothing else."""
    keys, documented = configuration_keys(), set(documented_defaults())
    assert sorted(documented - set(keys)) == []
    assert sorted(set(keys) - documented) == []


def test_documented_defaults_are_the_defaults() -> None:
    keys = configuration_keys()
    for name, text in documented_defaults().items():
        if text:
            expected = "required" if keys[name].is_required() else keys[name].default
            stated = text if text == "required" else yaml.safe_load(text.strip("`"))
            assert stated == (list(expected) if isinstance(expected, tuple) else expected), name


def test_every_benchmark_has_a_section() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("_")}
    assert set(re.findall(r"^## (\w+)$", text, re.M)) == scripts


def test_a_walk_forward_chosen_after_its_tests_says_so_and_counts_as_a_trial() -> None:
    """A report of a configuration changed on the command line is a further trial on tests that were seen."""
    text = (ROOT / "docs" / "experiments" / "walk-forward.md").read_text(encoding="utf-8")
    changed = [part for part in text.split("\n## ")
               if re.search(r"^`algospace walk-forward [^`]*\b(rde|mrms|core)\.", part, re.M)]
    assert changed, "no report with a changed training"
    for part in changed:
        trials = re.search(r"walk_forward\.trials=(\d+)", part)
        assert trials, part[:60]
        assert int(trials[1]) >= 2
        assert f"number of trials in the deflated Sharpe ratio is {trials[1]}" in part
        assert "chosen after seeing" in part

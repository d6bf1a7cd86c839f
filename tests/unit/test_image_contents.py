"""What `docker build` copies: all that the packages need, and nothing that a run or an operator leaves behind."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LEFT = (
    # docs/serving/security.md: `--folder security`; a token in a file; what shells and editors keep
    "security/keys/1.pem", "security/users.json", "security/revoked.json", "security/audit.jsonl",
    "security/kill_switch.json", "token", "secrets/token.txt", ".env", ".env.production", "id_ed25519",
    "server.key",
    # runs and stores: README and docs/configuration.md
    "runs/es/mlflow.db", "runs/es/checkpoints/core/team.pt", "mlflow.db", "mlruns/0/meta.yaml", "mlartifacts/x",
    "bundle/manifest.json", "market/ES/2024-01.parquet", "quarantine/ES.csv",
    # the checkout
    ".git/config", ".venv/bin/python", "tests/unit/test_doctor.py", "docs/cluster.md", ".mypy_cache/3.11/x.db",
    "algospace.egg-info/PKG-INFO", "build/lib/algospace/cli.py", "serving/page/web/node_modules/x/index.js",
    "algospace/features/__pycache__/mlmi.py311.nbi", "configs/serve/.env", "configs/serve/security/keys/1.pem",
    "training/mlflow.db",
)
_WILD = {"**/": "(.*/)?", "*": "[^/]*"}


def patterns() -> list[tuple[bool, re.Pattern[str]]]:
    """(excludes, what it matches) per line: https://docs.docker.com/build/concepts/context/#dockerignore-files."""
    found = []
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            parts = re.findall(r"\*\*/|\*|[^*]+", line.removeprefix("!"))
            text = "".join(_WILD.get(part) or re.escape(part) for part in parts)
            # a folder means what is below it, too
            found.append((not line.startswith("!"), re.compile(f"{text}(/.*)?")))
    return found


def copied(path: str) -> bool:
    """The last line that matches decides."""
    excluded = False
    for excludes, pattern in patterns():
        if pattern.fullmatch(path):
            excluded = excludes
    return not excluded


@pytest.mark.parametrize("path", LEFT)
def test_what_a_secret_or_a_run_leaves_stays_out(path: str) -> None:
    assert not copied(path)


def test_packages_configurations_and_the_built_page_are_copied() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    tracked = subprocess.run(["git", "ls-files", "-z", *packages], cwd=REPOSITORY, capture_output=True, text=True,
                             check=True).stdout.split("\0")[:-1]
    assert len(tracked) > 300
    assert [path for path in tracked if not copied(path) and not path.startswith("serving/page/web/")] == []
    for path in ("serving/page/static/index.html", "constraints.txt", *project["project"]["license-files"],
                 project["project"]["readme"], "pyproject.toml"):
        assert copied(path), path


def test_images_are_built_from_the_folder_that_the_file_lies_in() -> None:
    for name in ("Dockerfile", "Dockerfile.gpu"):
        text = (REPOSITORY / "configs" / "cluster" / name).read_text()
        assert re.search(r"docker build -f \S+ -t \S+ \.$", text, re.MULTILINE)
        assert not Path(REPOSITORY / "configs" / "cluster" / f"{name}.dockerignore").exists()

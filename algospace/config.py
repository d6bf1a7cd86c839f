"""Configuration: frozen pydantic models, YAML values, `key.path=value` overrides, and a hash.

Unknown keys are errors. The hash of the resolved configuration is part of every run and bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from algospace.errors import ConfigError


class FrozenConfig(BaseModel):
    """Base of every configuration section: immutable, unknown keys refused, keyword only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """SHA-256 (hex) of the resolved values."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_SECTION_ERRORS = ("model_type", "dict_type", "model_attributes_type")
"""What pydantic calls a section that holds no mapping."""

ConfigT = TypeVar("ConfigT", bound=FrozenConfig)


def load_config(model: type[ConfigT], path: Path | str, overrides: Iterable[str] = ()) -> ConfigT:
    """Read YAML into `model`, apply `key.path=value` overrides; ConfigError with one line on any fault."""
    return parse_config(model, read_yaml(path), overrides, source=str(path))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file; give the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top level, got {type(values).__name__}")
    return values


def parse_config(
    model: type[ConfigT], values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration"
) -> ConfigT:
    """Validate `values` with `overrides` applied."""
    merged = json.loads(json.dumps(dict(values), default=str))
    for override in overrides:
        apply_override(merged, override)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_line(error)}") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is parsed as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}': expected key.path=value")
    *parents, leaf = key.split(".")
    node = values
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override '{override}': '{name}' is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from None


def _first_line(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(p) for p in item["loc"]) or "(root)"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key '{where}'; check its spelling")
        elif item["type"] in _SECTION_ERRORS and item["input"] is None:
            lines.append(f"{where}: the section is empty; give it a value, or remove its line for the defaults")
        elif not item["loc"] and item["type"] == "value_error":  # a rule on several values says itself which
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})")
    return " | ".join(lines)

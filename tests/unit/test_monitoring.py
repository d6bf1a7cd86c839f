"""Alert rules, dashboard and scrape settings: proved by promtool, and about figures that the service has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.access import PERMISSIONS
from serving.metrics import FIGURES
from tests.conftest import REPOSITORY

MONITORING = REPOSITORY / "configs" / "monitoring"
_OTHERS = {"up", "ALERTS"}


def promtool(*arguments: object, folder: Path = MONITORING) -> subprocess.CompletedProcess[str]:
    """Run promtool; the test skips, visibly, where there is none (Debian's package `prometheus` has it)."""
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: apt-get install prometheus, or set PROMTOOL")
    return subprocess.run([program, *map(str, arguments)], cwd=folder, text=True, capture_output=True, timeout=120,
                          check=False)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def known_names() -> set[str]:
    """Every name that an expression may use."""
    names = {rule["record"] for rule in rules() if "record" in rule} | _OTHERS
    for figure in FIGURES:
        names |= {figure.name} if figure.kind != "histogram" else {
            figure.name + suffix for suffix in ("_bucket", "_sum", "_count")}
    return names


def used(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:algospace[:_][\w:]+|up|ALERTS)\b", re.sub(r'"[^"]*"', '""', expression)))


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((MONITORING / "grafana-decisions.json").read_text())["panels"]
    return found


def test_promtool_accepts_rules_and_configuration() -> None:
    for arguments in (("check", "rules", "rules.yaml"), ("check", "config", "--syntax-only", "prometheus.yaml")):
        checked = promtool(*arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    tested = promtool("test", "rules", "rules_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize(("right", "wrong", "name"), [
    ("accept_ratio:1h == 0", "accept_ratio:1h == 1", "a gate that accepts nothing"),
    ("seconds:p99_5m > 0.03", "seconds:p99_5m > 9", "slow decisions and requests"),
    (" unless on() algospace:market_closed", "", "no decisions, on a Thursday, in the daily break, on Saturday"),
    ("unless on() (max(max_over_time(algospace_kill_switch[1h])) == 1)", "",
     "the kill switch, while which closing is all that is accepted, and some time after it"),
])
def test_the_rules_tests_find_a_rule_that_is_wrong(tmp_path: Path, right: str, wrong: str, name: str) -> None:
    text = (MONITORING / "rules.yaml").read_text()
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())
    assert text.count(right) == 1
    tests["tests"] = [test for test in tests["tests"] if test["name"] == name]  # passes with the rules as they are
    assert len(tests["tests"]) == 1
    (tmp_path / "rules_test.yaml").write_text(yaml.safe_dump(tests))
    (tmp_path / "rules.yaml").write_text(text.replace(right, wrong))
    found = promtool("test", "rules", "rules_test.yaml", folder=tmp_path)
    assert found.returncode == 1
    assert "FAILED" in found.stdout + found.stderr


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}
            assert all(rule["annotations"][part].endswith(".") for part in ("summary", "action")), rule["alert"]


def test_rules_and_panels_ask_only_for_figures_that_exist() -> None:
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    for expression in expressions:
        assert used(expression) <= known_names(), expression


def test_every_figure_is_shown_or_watched() -> None:
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    seen = {re.sub("_bucket$", "", name) for expression in expressions for name in used(expression)}
    assert {figure.name for figure in FIGURES} <= seen


def test_labels_in_expressions_are_labels_of_the_figure() -> None:
    labels = {figure.name: {*figure.labels, "replica", "le"} for figure in FIGURES}
    expressions = [rule["expr"] for rule in rules()] + [t["expr"] for panel in panels() for t in panel["targets"]]
    matched = 0
    for expression in expressions:
        for name, selector in re.findall(r"(algospace_\w+)\{([^}]*)\}", expression):
            names = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert names <= labels[re.sub("_bucket$", "", name)], expression
            matched += 1
    assert matched >= 5


def test_panels_are_complete_and_do_not_overlap() -> None:
    places = set()
    for panel in panels():
        assert panel["title"]
        assert panel["targets"]
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & places
        assert max(x for x, _ in cells) < 24
        places |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_prometheus_asks_the_route_that_there_is_with_a_token_from_a_file() -> None:
    settings = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in settings["scrape_configs"]}
    ours = jobs["algospace"]
    assert "viewer" in PERMISSIONS["GET", ours["metrics_path"]]
    assert set(ours["authorization"]) == {"credentials_file"}
    (dropped,) = jobs["ray"]["metric_relabel_configs"]
    assert all(re.fullmatch(dropped["regex"], f"ray_{figure.name}") for figure in FIGURES)

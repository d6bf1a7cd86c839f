"""A promotion is earned: the alias moves if every check passes, and the checks stay with the version."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from algospace.errors import ConfigError
from training.config import RunConfig
from training.evaluation import report as evaluate_report
from training.evaluation.config import Judging
from training.evaluation.report import write_evaluation
from training.promotion import MODEL, promote
from training.tracking import Tracker, TrackingConfig
from training.tracking_store import connect

CONFIG = RunConfig(name="tried", market={"instrument": "SYNTH", "synthetic": {}},
                   tracking=TrackingConfig(experiment="promotion"))


def report(**changes: Any) -> dict[str, Any]:
    return {"policy": {"trades": 40, "net_pnl": 900.0}, "hashes": {"bundle": "b" * 64, "config": CONFIG.digest()},
            "baselines": {"buy_and_hold": {"net_pnl": 100.0}, "momentum": {"net_pnl": -50.0}},
            "significance": {"deflated_sharpe": 0.97, "probabilistic_sharpe": 0.99, "trials": 8},
            "gate": {"promise_kept": True, "threshold": 0.6}, **changes}


def martingale(**changes: Any) -> dict[str, Any]:
    judging = Judging().model_dump(mode="json")
    return {"martingale": {"config_hash": CONFIG.digest(), "judging": judging, "failures": [], **changes}}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {"config_hash": CONFIG.digest(), "controls": martingale(), "failures": [], "alarms": [], **changes}


TRADED = "martingale control: in the market"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose history holds one registered bundle."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "bundle").mkdir()
    (folder / "bundle" / "weights").write_text("w")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG.model_dump(mode="json")))
    with Tracker.open(CONFIG.tracking, folder, CONFIG.name, {}, CONFIG.digest()) as tracker:
        (folder / "run.json").write_text(json.dumps({"mlflow_run_id": tracker.run_id,
                                                     "config_hash": CONFIG.digest()}))
        with tracker.child("backtest", {}, {"bundle": "b" * 64}) as run:
            run.register_model(MODEL, folder / "bundle", "candidate", {"net_pnl": 900.0}, "tried")
    return folder


def prepared(folder: Path, tmp_path: Path, found: dict[str, Any], judged: dict[str, Any]) -> Path:
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "report.json").write_text(json.dumps(found))
    (tmp_path / "report.json").write_text(json.dumps(judged))
    return tmp_path


def champion(folder: Path) -> Any:
    client, _ = connect(f"sqlite:///{folder / 'mlflow.db'}", "promotion", folder / "mlartifacts")
    aliases = client.get_registered_model(MODEL).aliases
    return aliases.get("champion"), client.get_model_version(MODEL, aliases["candidate"]).tags


FAILING = [
    (report(policy={"trades": 0, "net_pnl": 900.0}), evaluation(), "beats_baselines"),
    (report(policy={"trades": 5, "net_pnl": 99.0}), evaluation(), "beats_baselines"),
    (report(significance={"deflated_sharpe": 0.9, "probabilistic_sharpe": 0.99, "trials": 8}), evaluation(),
     "deflated_sharpe"),
    (report(significance={"deflated_sharpe": None, "probabilistic_sharpe": None, "trials": 1}), evaluation(),
     "deflated_sharpe"),
    (report(gate={"promise_kept": False, "threshold": 0.9}), evaluation(), "gate"),
    (report(gate=None), evaluation(), "gate"),
    (report(), evaluation(controls={}), "control"),
    (report(), {"config_hash": CONFIG.digest(), "failures": [], "alarms": []}, "control"),  # without controls
    (report(), evaluation(controls=martingale(config_hash="0" * 64)), "control"),  # with fewer steps
    (report(), evaluation(controls=martingale(judging={"max_idle_exposure": 1.0})), "control"),
    (report(), evaluation(controls=martingale(failures=[TRADED]), failures=[TRADED]), "control"),
    (report(), evaluation(config_hash="0" * 64), "alarm"),
    (report(), evaluation(alarms=[9001], failures=["the leak alarm rings on market 9001"]), "alarm"),
    (report(), evaluation(alarms=[9001]), "alarm"),
    (report(), {"config_hash": CONFIG.digest(), "controls": martingale(), "failures": []}, "alarm"),  # no core
]


@pytest.mark.parametrize(("found", "judged", "name"), FAILING)
def test_one_failed_check_leaves_the_alias_and_is_recorded(registered: Path, tmp_path: Path, found: dict[str, Any],
                                                           judged: dict[str, Any], name: str) -> None:
    result = promote(registered, prepared(registered, tmp_path, found, judged))
    assert [check.name for check in result.checks if not check.passed] == [name]
    assert not result.promoted
    moved, tags = champion(registered)
    assert moved is None
    assert tags[f"check.{name}"].startswith("failed")


def test_a_control_evaluated_alone_leaves_the_cores_report_and_counts_beside_it(registered: Path,
                                                                               tmp_path: Path) -> None:
    """`evaluate --run X`, then `--run X --control martingale`: promotion reads the alarm of one and the verdict of
    the other, whichever came last."""
    core = {"config_hash": CONFIG.digest(), "failures": [], "alarms": []}
    alone = {"config_hash": CONFIG.digest(), "controls": martingale(), "failures": [], "name": "tried"}
    failing = alone | {"controls": martingale(failures=[TRADED]), "failures": [TRADED]}
    ringing = core | {"alarms": [9002], "failures": ["the leak alarm rings on market 9002"]}
    for judged, control, wrong in ((core, failing, ["control"]), (ringing, alone, ["alarm"]),
                                   (ringing, failing, ["alarm", "control"])):
        folder = prepared(registered, tmp_path, report(), judged)
        (folder / "report-control-martingale.json").write_text(json.dumps(control))
        for place in (folder, folder / "report.json"):
            found = promote(registered, place)
            assert [check.name for check in found.checks if not check.passed] == wrong
            assert not found.promoted
    (tmp_path / "report.json").unlink()
    with pytest.raises(ConfigError, match="no such file; make one with `algospace evaluate --run RUN`"):
        promote(registered, tmp_path)


def test_controls_alone_are_written_to_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_report, "page", lambda document: f"{list(document['controls'])}")
    core = {"name": "tried", "policies": {}, "failures": [], "controls": {}}
    assert [path.name for path in write_evaluation(core, tmp_path)] == ["report.json", "report.md"]
    found = {kind: {"failures": [kind]} for kind in ("martingale", "oracle")}
    alone = {"name": "tried", "controls": found, "failures": ["martingale", "oracle"]}
    written = write_evaluation(alone, tmp_path)
    assert [path.name for path in written] == [f"report-control-{kind}.{suffix}" for suffix in ("json", "md")
                                               for kind in ("martingale", "oracle")]
    assert json.loads((tmp_path / "report.json").read_text()) == core
    one = json.loads(written[0].read_text())
    assert (list(one["controls"]), one["failures"]) == (["martingale"], ["martingale"])


def test_nothing_is_promoted_without_its_papers(registered: Path, tmp_path: Path) -> None:
    other = {"bundle": "c" * 64, "config": CONFIG.digest()}
    folder = prepared(registered, tmp_path, report(hashes=other), evaluation())
    with pytest.raises(ConfigError, match="not registered there"):
        promote(registered, folder)
    with pytest.raises(ConfigError, match="no such file"):
        promote(registered, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="train the run to its end"):
        promote(tmp_path, folder)


def test_papers_of_something_else_are_refused_in_one_line(registered: Path, tmp_path: Path) -> None:
    older = {"bundle": "b" * 64, "config": "0" * 64}
    with pytest.raises(ConfigError, match="of another configuration"):
        promote(registered, prepared(registered, tmp_path, report(hashes=older), evaluation()))
    folder = prepared(registered, tmp_path, report(), {"verdict": []})
    with pytest.raises(ConfigError, match="holds no 'config_hash'"):
        promote(registered, folder)
    (tmp_path / "report.json").write_text("half a doc")
    with pytest.raises(ConfigError, match="not JSON"):
        promote(registered, folder)


def test_every_check_passed_moves_the_alias(registered: Path, tmp_path: Path) -> None:
    result = promote(registered, prepared(registered, tmp_path, report(), evaluation()))
    assert result.promoted
    moved, tags = champion(registered)
    assert str(moved) == result.version
    assert tags["check.control"].startswith("passed")
    assert tags["check.alarm"].startswith("passed")

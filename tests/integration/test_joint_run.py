"""A run over several markets: one regime network and one core, and an ordinary run per instrument that everything
behind training can use."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from algospace.config import load_config
from serving.bundle import load_bundle
from training.config import RunConfig
from training.dataset import open_dataset
from training.experts import load_regime
from training.joint import joined_regime_rows, market_runs, run_joint
from training.mappo.core_team import CoreTeamModule
from training.pipeline import stale_phase
from training.rde import window_ends
from training.team_training import load_team

pytestmark = pytest.mark.usefixtures("ray_cluster")
QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
SECOND = ("{instrument: MES, synthetic: {scenario: mid, train_seed: 3, train_bars: 21000, validation_seed: 503, "
          "validation_bars: 12000, test_seeds: [9003], test_bars: 12000}}")
TINY = [
    "market.synthetic.train_bars=30000", "market.synthetic.validation_bars=12000",
    "market.synthetic.test_seeds=[9001]", "market.synthetic.test_bars=12000", f"markets=[{SECOND}]",
    "rde.size=tiny", "rde.epochs=1", "rde.windows_per_epoch=512", "mrms.mappo.env_steps=4096",
    "core.mappo.env_steps=16384", "core.mappo.num_shards=2", "core.mappo.envs_per_shard=16",
    "core.mappo.minibatches=4", "core.mappo.checkpoint_every=1", "backtest.full_run_bars=1000",
    "backtest.calibration_bars=1000", "backtest.supervised=false",
]
FOLDERS = ("1-SYNTH", "2-MES")


def tiny(*changes: str) -> RunConfig:
    return load_config(RunConfig, QUICKSTART, [*TINY, *changes])


def run(config: RunConfig, folder: Path, **options: Any) -> tuple[dict[str, Any], str]:
    said = io.StringIO()
    return run_joint(config, folder, Console(file=said, width=200), **options), said.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The trained run's folder."""
    folder = tmp_path_factory.mktemp("joint")
    assert run(tiny(), folder, complete=False)[0] == {}
    return folder


@pytest.mark.slow  # two evaluations, bundles and backtests
def test_every_instrument_gets_a_whole_run(finished: Path) -> None:
    folder = finished
    done, _ = run(tiny(), folder)
    assert tuple(done) == FOLDERS
    for name, symbol in zip(FOLDERS, ("SYNTH", "MES"), strict=True):
        manifest = load_bundle(folder / name / "bundle").manifest
        assert manifest.instrument == symbol
        assert (folder / name / "report" / "report.html").is_file()
        assert done[name].unit is not None
        assert np.isfinite(done[name].unit["policy"]["score"])
    first, second = (load_bundle(folder / name / "bundle").manifest.risk_unit for name in FOLDERS)
    assert first != second


def test_parts_share_regime_network_and_core_weights(finished: Path) -> None:
    """Only the folded biases differ between the instruments' cores; the M-RMS is each one's own."""
    folder = finished
    one, two = (load_team(folder / name / "core" / "team") for name in FOLDERS)
    assert type(one.module) is CoreTeamModule
    assert (one.spec["instrument"], two.spec["instrument"]) == ("SYNTH", "MES")
    states = [team.module.state_dict() for team in (one, two)]
    different = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert different == {"net.trunk_in.bias", "net.critic.0.bias"}
    nets = [load_regime(folder / name).state_dict() for name in FOLDERS]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    risks = [load_team(folder / name / "mrms" / "team").module.state_dict() for name in FOLDERS]
    assert any(not torch.equal(risks[0][name], risks[1][name]) for name in risks[0])


def test_each_market_is_normalised_by_its_own_training_rows(finished: Path) -> None:
    folder = finished
    one, two = (open_dataset(folder / name) for name in FOLDERS)
    schemas = [dataset.train.market().schema for dataset in (one, two)]
    assert [c.name for c in schemas[0].tactical.columns] == [c.name for c in schemas[1].tactical.columns]
    assert [c.scale for c in schemas[0].tactical.columns] != [c.scale for c in schemas[1].tactical.columns]
    assert two.validation.market().schema == schemas[1]


def test_windows_of_the_shared_regime_network_stay_in_one_market(finished: Path) -> None:
    folder = finished
    datasets = [open_dataset(folder / name) for name in FOLDERS]
    rows, train, validation = joined_regime_rows(datasets)
    assert train[1] == validation[0]
    assert validation[1] == len(rows)
    for part in (train, validation):
        gaps = np.flatnonzero(np.isnan(rows[part[0]: part[1]]).all(1)) + part[0]
        ends = window_ends(rows, part, 96)
        assert ends.size
        assert not any(((ends - 95 <= gap) & (gap <= ends)).any() for gap in gaps)


def test_a_finished_joint_run_is_reused_and_changed_data_is_not(finished: Path) -> None:
    folder = finished
    before = (folder / "core" / "team" / "weights.pt").read_bytes()
    _, said = run(tiny(), folder, complete=False)
    assert said.count("reusing the finished joint phase") == 2
    assert said.count("mrms: reusing") == 2
    assert (folder / "core" / "team" / "weights.pt").read_bytes() == before
    parts = market_runs(tiny(), folder, Console(file=io.StringIO()))
    for part in parts:
        assert stale_phase(part.config, part.dataset, part.folder) is None
    other = tiny("core.net.hidden=32")
    assert [stale_phase(part.config, part.dataset, part.folder)
            for part in market_runs(other, folder, Console(file=io.StringIO()))] == ["core", "core"]

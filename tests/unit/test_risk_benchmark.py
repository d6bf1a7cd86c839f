"""The M-RMS benchmark looks at the judging markets only if it is told to."""

from pathlib import Path

from algospace.config import load_config
from benchmarks.risk import TUNING_SEEDS, parser, played
from tests.conftest import REPOSITORY
from tests.training_market import synthetic_market
from training.config import RunConfig
from training.dataset import Dataset, Split

SESSION = REPOSITORY / "configs" / "train" / "session.yaml"
JUDGING = set(range(9001, 9011))


def test_tuning_markets_are_the_default_and_judging_is_asked_for(tmp_path: Path) -> None:
    market = synthetic_market(tmp_path / "train", 1, 8_000)
    split = Split(market.market, market.start, market.stop)
    dataset = Dataset(split, split, (split,), "")
    config = load_config(RunConfig, SESSION, ["market.synthetic.test_bars=6000",
                                             "market.synthetic.train_seed=705"])
    by_default, asked = parser().parse_args([]), parser().parse_args(["--judge"])
    tuning = played(config, dataset, tmp_path / "tuning", by_default.judge)
    assert [split.seed for split in tuning] == [seed for seed in TUNING_SEEDS if seed != 705]
    judging = played(config, dataset, tmp_path / "judging", asked.judge)
    assert {split.seed for split in judging} <= JUDGING
    assert all(split.market().schema == market.table.schema for split in judging)


def test_on_recorded_bars_the_test_split_is_what_judges(tmp_path: Path) -> None:
    config = load_config(RunConfig, REPOSITORY / "configs" / "train" / "nq.yaml")
    splits = [Split(tmp_path, k, k + 1) for k in range(3)]
    dataset = Dataset(splits[0], splits[1], (splits[2],), "")
    assert played(config, dataset, tmp_path, judge=False) == (splits[1],)
    assert played(config, dataset, tmp_path, judge=True) == (splits[2],)


def test_the_shipped_configuration_opens_no_judging_market() -> None:
    market = load_config(RunConfig, SESSION).market.synthetic
    assert market is not None
    assert not JUDGING & {market.train_seed, market.validation_seed, *market.test_seeds}

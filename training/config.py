"""The configuration of a whole run: market, splits, three phases, backtest, tracking."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from agents.gate import GateConfig
from agents.settings import CoreConfig, RegimeConfig, RiskConfig
from algospace.config import FrozenConfig
from algospace.features import FeatureConfig
from algospace.features.matrix_schema import MatrixConfig
from envs.config import CoreEnvConfig, RiskEnvConfig
from training.mappo.settings import MAPPOSettings
from training.tracking import TrackingConfig

Phase = Literal["rde", "mrms", "core"]
PHASES: tuple[Phase, ...] = ("rde", "mrms", "core")


def _as_text(value: object) -> object:
    """YAML reads an unquoted date as one; it stays text here."""
    return value.isoformat() if isinstance(value, date) else value


IsoDate = Annotated[str, BeforeValidator(_as_text)]


class SyntheticMarketConfig(FrozenConfig):
    """Markets with known truth; training, validation and test are different seeds."""

    scenario: str = "easy"
    train_seed: int = 1
    train_bars: int = Field(1_000_000, ge=1)
    validation_seed: int = 501
    validation_bars: int = Field(60_000, ge=1)
    test_seeds: tuple[int, ...] = Field((9001, 9002), min_length=1)
    test_bars: int = Field(260_000, ge=1)

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        seeds = (self.train_seed, self.validation_seed, *self.test_seeds)
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"training, validation and test seeds must differ, got {seeds}")
        return self


class FileMarketConfig(FrozenConfig):
    """Recorded bars, split by time: training up to `train_until`, then validation, then test, [from, until).

    `path` is relative to ALGOSPACE_DATA unless absolute. Dates are ISO, UTC.
    """

    path: str
    start: IsoDate | None = None
    train_until: IsoDate
    validation_until: IsoDate
    test_until: IsoDate | None = None


class MarketConfig(FrozenConfig):
    """One instrument from exactly one source."""

    instrument: str
    synthetic: SyntheticMarketConfig | None = None
    file: FileMarketConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.synthetic is None) == (self.file is None):
            raise ValueError("give exactly one of 'synthetic' and 'file'")
        return self


class RiskPhaseConfig(FrozenConfig):
    """Phase 2: the M-RMS."""

    net: RiskConfig = RiskConfig()
    env: RiskEnvConfig = RiskEnvConfig()
    mappo: MAPPOSettings = MAPPOSettings(env_steps=100_000, num_shards=1, envs_per_shard=64, segment=32, gamma=0.0)
    """gamma 0: what follows a trade does not depend on it, so its return is all that an action brings about."""

    @model_validator(mode="after")
    def _segments_fill_episodes(self) -> Self:
        if self.env.episode_trades % self.mappo.segment:  # an ended episode would wait, and be learnt from
            raise ValueError(f"mrms.env.episode_trades ({self.env.episode_trades}) must be a multiple of "
                             f"mrms.mappo.segment ({self.mappo.segment})")
        return self


class CorePhaseConfig(FrozenConfig):
    """Phase 3: the main core."""

    net: CoreConfig = CoreConfig()
    env: CoreEnvConfig = CoreEnvConfig()
    mappo: MAPPOSettings = MAPPOSettings()

    @model_validator(mode="after")
    def _segments_fill_episodes(self) -> Self:
        if self.env.episode_bars % self.mappo.segment:
            raise ValueError(f"core.env.episode_bars ({self.env.episode_bars}) must be a multiple of "
                             f"core.mappo.segment ({self.mappo.segment})")
        return self


class BacktestConfig(FrozenConfig):
    """The full run (brackets, M-RMS, gate) on at most `full_run_bars` test rows (0: all of them); calibration on
    at most `calibration_bars` validation rows."""

    full_run_bars: int = Field(0, ge=0)
    calibration_bars: int = Field(0, ge=0)
    supervised: bool = True
    supervised_rows: int = Field(60_000, ge=1)


class TuningConfig(FrozenConfig):
    """The sweep that chose these values, kept because the best of many trials is partly luck: the deflated
    Sharpe ratio needs their number and their Sharpe ratios per bar on the validation split. Written by
    `algospace tune`."""

    sweep: str
    config_hash: str
    trials: int = Field(ge=1)
    sharpes: tuple[float, ...] = ()


class RunConfig(FrozenConfig):
    """Everything that decides a run's result."""

    name: str
    seed: int = Field(0, ge=0, lt=2**63)
    market: MarketConfig
    markets: tuple[MarketConfig, ...] = ()
    """Further markets: one core learns on all of them, told which one it trades (training.joint)."""
    embargo_bars: int = Field(2016, ge=0)
    """Base bars left out at the start of validation and test: at least the longest lookback."""
    features: FeatureConfig = FeatureConfig()
    matrices: MatrixConfig = MatrixConfig()
    rde: RegimeConfig = RegimeConfig()
    mrms: RiskPhaseConfig = RiskPhaseConfig()
    core: CorePhaseConfig = CorePhaseConfig()
    gate: GateConfig = GateConfig()
    backtest: BacktestConfig = BacktestConfig()
    tracking: TrackingConfig = TrackingConfig()
    tuning: TuningConfig | None = None
    torch_threads: int = Field(1, ge=1)

    @property
    def actors(self) -> tuple[int, float]:
        """Processors (2 at least) and GPUs that the most demanding phase's runners and learners take."""
        teams = (self.mrms.mappo, self.core.mappo)
        processors = (2, self.rde.num_learners, *(team.remote_actors for team in teams))
        gpus = (max(1, part.num_learners) * part.gpus_per_learner for part in (self.rde, *teams))
        return max(processors), max(gpus)

    @model_validator(mode="after")
    def _markets_get_equal_shares(self) -> Self:
        count, shards = 1 + len(self.markets), self.core.mappo.num_shards
        if shards % count:
            raise ValueError(f"core.mappo.num_shards ({shards}) must be a multiple of the number of markets "
                             f"({count}): every market gets the same share of the decisions")
        return self

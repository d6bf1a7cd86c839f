"""What the networks are made of, by name and number: configurations, agents, actions, inputs.

Without torch: a service that decides with ONNX Runtime knows these and never loads it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from algospace.config import FrozenConfig

VOTERS = ("strategic", "tactical", "arbitrage")
AGENTS = (*VOTERS, "execution")
VOTES = ("short", "pass", "long")
EXECUTION_ACTIONS = ("reject", "execute", "close")
NUM_ACCOUNT, NUM_SYNERGY, NUM_PROPOSAL = 8, 3, 3
RISK_AGENTS = ("size", "stop", "target")
RISK_ACTIONS = (6, 7, 5)   # {0..5} contracts, {.5, 1, 1.5, 2, 3, 4 ATR, beyond the LVN}, {1, 1.5, 2, 3, 4} R
NUM_RISK_ACCOUNT = 4
NUM_HINDSIGHT = 6          # brackets that the critic knows the outcome of
NUM_CRITIC = NUM_RISK_ACCOUNT + NUM_HINDSIGHT

EmbedderKind = Literal["tcn", "lstm", "lstm_recurrent", "transformer"]
RegimeSize = Literal["tiny", "small", "full"]


class Shapes(NamedTuple):
    """Feature counts and windows of the matrices, and the size of the regime vector."""

    strategic: int
    strategic_window: int
    tactical: int
    tactical_window: int
    regime: int


class CoreConfig(FrozenConfig):
    """Sizes of the core's networks.

    Biases of the first policy: `pass_bias` keeps voters near passing, `reject_bias` execution near rejecting;
    `execute_bias` makes rejecting and closing less likely at the start, so that votes are heard at once: faster in
    short runs, worse in long ones (docs/experiments/learning.md).
    """

    embedder: EmbedderKind = "tcn"
    embed_dim: int = Field(16, ge=1)
    channels: int = Field(16, ge=1)
    hidden: int = Field(64, ge=1)
    critic_hidden: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    pass_bias: float = 1.0
    reject_bias: float = 0.0
    execute_bias: float = 0.0


class RiskConfig(FrozenConfig):
    """Sizes of the M-RMS networks.

    min_contracts: the smallest size that the sizer may choose. Trained on entries without selection it learns,
    rightly, that most are not worth taking; with 0 allowed it vetoes them all (98 % of NQ's rows), and the core,
    whose task it is to choose entries, never gets to trade. Whether to trade is the core's and the gate's
    question; how much, the sizer's.
    """

    embedder: EmbedderKind = "tcn"
    embed_dim: int = Field(16, ge=1)
    channels: int = Field(16, ge=1)
    hidden: int = Field(64, ge=1)
    critic_hidden: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    min_contracts: int = Field(1, ge=0, lt=RISK_ACTIONS[0])


class RegimeConfig(FrozenConfig):
    """Network and training of the regime detection engine.

    window, features: shape of the regime matrix. patch: rows joined to one token; must divide the window.
    beta: weight of the KL term (nats per window) beside errors that are means over the window's elements;
        it rises linearly from 0 over the first `warmup_fraction` of training.
    free_bits: nats per latent dimension below which the KL term does not push.
    predict_steps: rows after the window that the decoder predicts too; 0 turns it off.
    predict_weight: weight of the prediction error beside the reconstruction error.
    recency_half_life: rows after which an older row of the window counts half as much in the reconstruction;
        0 weighs all rows equally. A window spans several regimes, and what matters is the last one.
    column_weights: weight of each column's squared error; empty: with the twelve MMD columns 1 for those of
        direction and volatility and 0.01 for the others, with another number of columns 1 for all.
    recent_skip: a linear path from the last token to the latent beside the encoder.
    precision: bf16 trains under autocast; weights, optimiser, loss and inference stay float32.
    windows_per_epoch: windows drawn, without replacement, in each epoch; 0 means all of them.
    validation_windows: evenly spaced windows that early stopping looks at.
    validation_fraction: tail of the training rows used where no validation rows are given.
    patience: epochs without improvement by at least `min_improvement` (relative) before training stops.
    num_learners: remote processes that share each batch (DDP); 0 trains in the driver's process.
    gpus_per_learner: of each of them, or of the driver's process.
    """

    size: RegimeSize = "small"
    window: int = Field(96, ge=2)
    features: int = Field(12, ge=1)
    latent: int = Field(8, ge=1)
    patch: int = Field(8, ge=1)
    predict_steps: int = Field(4, ge=0)
    predict_weight: float = Field(0.3, ge=0)
    recency_half_life: float = Field(1.0, ge=0)
    column_weights: tuple[float, ...] = ()
    recent_skip: bool = True
    precision: Literal["float32", "bf16"] = "float32"
    beta: float = Field(1e-3, ge=0)
    warmup_fraction: float = Field(0.3, ge=0, le=1)
    free_bits: float = Field(0.05, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(128, ge=1)
    windows_per_epoch: int = Field(0, ge=0)
    validation_windows: int = Field(2048, ge=1)
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    patience: int = Field(4, ge=1)
    min_improvement: float = Field(1e-3, ge=0)
    num_learners: int = Field(0, ge=0)
    gpus_per_learner: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _patches_fill_the_window(self) -> Self:
        if self.window % self.patch:
            raise ValueError(f"patch {self.patch} must divide the window of {self.window} rows")
        return self

    @model_validator(mode="after")
    def _learners_share_the_batch(self) -> Self:
        if self.num_learners and self.batch_size % self.num_learners:
            raise ValueError(f"num_learners {self.num_learners} must divide the batch_size of {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _one_weight_per_column(self) -> Self:
        weights = self.column_weights
        if weights and (len(weights) != self.features or min(weights) < 0 or not any(weights)):
            raise ValueError(f"column_weights must be {self.features} numbers that are not negative nor all 0")
        return self

    @classmethod
    def quick(cls, **overrides: object) -> Self:
        """The quickstart's recipe with the smallest network: a quarter of a minute of training on one core."""
        recipe: dict[str, object] = {
            "size": "tiny", "epochs": 8, "windows_per_epoch": 10_240, "learning_rate": 2e-3, "patience": 3}
        return cls.model_validate({**recipe, **overrides})

    @property
    def tokens(self) -> int:
        """Tokens that the encoder sees."""
        return self.window // self.patch

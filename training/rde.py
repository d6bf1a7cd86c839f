"""Training of the regime detection engine, its vectors for a whole table, and its checkpoint.

Windows are rows j-W+1..j of the regime matrix (and, in training, the k rows after them); none crosses the edge of
its split and none holds an incomplete row (the market table's warm-up rows are all zeros). Training runs through
RLlib's LearnerGroup, in this process or on several learners.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup

from agents.regime import RegimeNet
from agents.settings import RegimeConfig
from algospace.config import parse_config
from algospace.errors import BundleError, ConfigError, SchemaError
from algospace.files import atomic_directory, atomic_path, sha256_file, write_json
from algospace.seeding import stream_key
from algospace.types import BoolArray, Float32Array, IntArray
from training.checkpoints import CheckpointWarning
from training.ray_session import own_errors
from training.rde_learner import RDELearner, rde_batch, rde_module_spec

Rows = tuple[int, int]
LogFn = Callable[[int, dict[str, float]], None]
ProgressFn = Callable[[int, int], None]

_WEIGHTS, _CONFIG = "regime.pt", "config.json"
_VECTOR_BATCH = 256  # larger batches leave the cache and are slower on one core


@dataclass(frozen=True)
class RDEResult:
    """The network of the best epoch, its figures, and one dict of figures per epoch."""

    net: RegimeNet
    metrics: dict[str, float]
    history: list[dict[str, float]]


@dataclass
class _Progress:
    """What early stopping and resuming have to remember between epochs."""

    epoch: int = 0
    stale_epochs: int = 0
    best_epoch: int = -1
    best_loss: float = math.inf
    best_net: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def train_rde(
    regime_rows: Float32Array,
    train: Rows,
    validation: Rows | None,
    config: RegimeConfig,
    seed: int,
    log: LogFn | None = None,
    progress: ProgressFn | None = None,
    *,
    mirror_sign: Float32Array | None = None,
    checkpoint: Path | None = None,
) -> RDEResult:
    """Train a regime network on normalised regime rows (m, F).

    train, validation: half-open row ranges; without validation rows the tail of the training rows is used.
    log(step, figures) is called after every epoch, progress(steps done, steps in all) too.
    mirror_sign (F,): +1 or -1 per column; half of the windows are then seen from the mirrored market.
    checkpoint: file written after every epoch; if it exists, training continues there and ends exactly as if it
        had never stopped. It is refused if it belongs to another configuration, seed or data.
    The same seed, rows and number of torch threads give the same weights.

    Raises ConfigError where the rows hold too few windows, SchemaError where they have another width, and
    training.mappo.finite.NonFiniteError where a gradient is no number.
    """
    _check_columns(regime_rows, config)
    train, validation = _split(train, validation, config, len(regime_rows))
    ahead = config.predict_steps
    train_ends = _require(window_ends(regime_rows, train, config.window, ahead), config.batch_size, "training")
    validation_ends = _require(window_ends(regime_rows, validation, config.window, ahead), 1, "validation")
    picks = np.linspace(0, len(validation_ends) - 1, min(len(validation_ends), config.validation_windows))
    group = _learner_group(config, seed)
    try:
        sign = np.ones(config.features, np.float32) if mirror_sign is None else np.asarray(mirror_sign, np.float32)
        centre, scale = column_scale(regime_rows[train_ends], sign)
        _each(group, lambda learner: learner.set_rows(regime_rows, sign, centre, scale))
        digest = hashlib.sha256(b"".join(a.tobytes() for a in (regime_rows, sign, train_ends, validation_ends)))
        held_out = validation_ends[picks.astype(np.int64)]
        data = _Data(train_ends, held_out, mirror_sign is not None, digest.hexdigest())
        run = _Run(group, config, seed, data, checkpoint)
        return run.train(log, progress)
    finally:
        group.shutdown()


@dataclass(frozen=True)
class _Data:
    """Window ends of both splits, whether windows are mirrored, and a digest of everything trained on."""

    train_ends: IntArray
    validation_ends: IntArray
    mirror: bool
    digest: str


class _Run:
    """One training run over epochs: draws them, asks the learners to train, watches the validation loss."""

    def __init__(
        self, group: LearnerGroup, config: RegimeConfig, seed: int, data: _Data, checkpoint: Path | None
    ) -> None:
        self.group, self.config, self.seed, self.data = group, config, seed, data
        self.checkpoint, self.learners = checkpoint, max(1, config.num_learners)
        windows = min(len(data.train_ends), config.windows_per_epoch or len(data.train_ends))
        self.steps = max(1, windows // config.batch_size)
        self.total_steps = self.steps * config.epochs
        self.identity = stream_key(config.digest(), seed, data.digest)

    def train(self, log: LogFn | None, progress: ProgressFn | None) -> RDEResult:
        state = self._restore()
        while state.epoch < self.config.epochs and state.stale_epochs < self.config.patience:
            figures = self._epoch(state)
            if log is not None:
                log(state.epoch * self.steps, figures)
            if progress is not None:
                progress(state.epoch * self.steps, self.total_steps)
            self._save(state)
        if progress is not None:
            progress(self.total_steps, self.total_steps)
        return RDEResult(_network(self.config, state.best_net), self._metrics(state), state.history)

    def _epoch(self, state: _Progress) -> dict[str, float]:
        """Train one epoch and update `state`; returns the epoch's figures.

        The best weights are those of the lowest validation loss; only a relative gain of `min_improvement`
        resets the patience.
        """
        with own_errors():
            self.group.update(
                batch=self._draw(state.epoch), minibatch_size=self.config.batch_size // self.learners,
                first_step=state.epoch * self.steps, total_steps=self.total_steps, _no_metrics_reduce=True)
        means = _each(self.group, lambda learner: learner.epoch_means())
        ends = self.data.validation_ends
        held_out = _each(self.group, lambda learner: learner.validate(ends))[0]
        figures = {name: sum(m[name] for m in means) / len(means) for name in means[0]}
        figures |= {f"validation_{name}": value for name, value in held_out.items()}
        figures["epoch"] = float(state.epoch + 1)
        improved = held_out["loss"] < state.best_loss * (1.0 - self.config.min_improvement)
        state.stale_epochs = 0 if improved else state.stale_epochs + 1
        if held_out["loss"] < state.best_loss:
            state.best_epoch, state.best_loss = state.epoch, held_out["loss"]
            state.best_net = _each(self.group, lambda learner: learner.net_state())[0]
        state.epoch += 1
        state.history.append(figures)
        return figures

    def _draw(self, epoch: int) -> Any:
        """The epoch's windows in random order, with their noise: functions of (seed, epoch) only."""
        generator = np.random.Generator(np.random.Philox(stream_key(self.seed, "rde", epoch)))
        count = self.steps * self.config.batch_size
        ends = generator.permutation(self.data.train_ends)[:count]
        noise = generator.standard_normal((count, self.config.latent), dtype=np.float32)
        coin = generator.integers(0, 2, count)
        mirror = np.where(self.data.mirror & (coin == 1), -1.0, 1.0).astype(np.float32)
        return rde_batch(ends, noise, mirror)

    def _metrics(self, state: _Progress) -> dict[str, float]:
        best = {k: v for k, v in state.history[state.best_epoch].items() if k.startswith("validation_")}
        return {**best, "best_epoch": float(state.best_epoch + 1), "epochs": float(state.epoch),
                "steps": float(state.epoch * self.steps), "train_windows": float(len(self.data.train_ends)),
                "parameters": float(sum(value.numel() for value in state.best_net.values()))}

    def _save(self, state: _Progress) -> None:
        if self.checkpoint is None:
            return
        learner = _each(self.group, lambda learner: learner.training_state())[0]
        written = io.BytesIO()  # torch reports a full disk as a RuntimeError
        torch.save({"identity": self.identity, "learner": learner, "progress": vars(state)}, written)
        try:
            with atomic_path(self.checkpoint) as part:
                part.write_bytes(written.getbuffer())
        except OSError as error:
            warnings.warn(f"checkpoint {self.checkpoint} could not be written ({error.strerror or error}); the "
                          f"one before it is intact; training goes on and tries again after the next epoch: make "
                          f"room", CheckpointWarning, stacklevel=2)

    def _restore(self) -> _Progress:
        if self.checkpoint is None or not self.checkpoint.exists():
            return _Progress()
        saved = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if saved["identity"] != self.identity:
            raise ConfigError(f"{self.checkpoint}: belongs to another configuration, seed or data; delete it")
        learner_state = saved["learner"]
        _each(self.group, lambda learner: learner.set_training_state(copy.deepcopy(learner_state)))
        return _Progress(**saved["progress"])


def _each(group: Any, call: Callable[[RDELearner], Any]) -> list[Any]:
    """`call` on every learner; the first failure is raised here."""
    results = [result.get() for result in group.foreach_learner(call)]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _learner_group(config: RegimeConfig, seed: int) -> LearnerGroup:
    """A LearnerGroup without an Algorithm; with `num_learners` 0 it needs no Ray cluster."""
    algorithm = AlgorithmConfig().framework("torch").learners(
        learner_class=RDELearner, num_learners=config.num_learners, num_gpus_per_learner=config.gpus_per_learner)
    return algorithm.build_learner_group(rl_module_spec=rde_module_spec(config, seed))


def _split(train: Rows, validation: Rows | None, config: RegimeConfig, rows: int) -> tuple[Rows, Rows]:
    """Checked ranges; without validation rows the tail of the training rows is cut off for them."""
    if validation is None:
        cut = train[1] - round((train[1] - train[0]) * config.validation_fraction)
        train, validation = (train[0], cut), (cut, train[1])
    for name, (start, stop) in (("training", train), ("validation", validation)):
        if not 0 <= start < stop <= rows:
            raise ConfigError(f"{name} rows {start}..{stop} do not lie in the table's {rows} rows")
    return train, validation


def _require(ends: IntArray, least: int, name: str) -> IntArray:
    if len(ends) < least:
        raise ConfigError(f"the {name} rows hold {len(ends)} complete regime windows, {least} are needed; "
                          "give more data or a smaller window, batch_size or predict_steps")
    return ends


def _check_columns(regime_rows: Float32Array, config: RegimeConfig) -> None:
    if regime_rows.ndim != 2 or regime_rows.shape[1] != config.features:
        raise SchemaError(f"regime rows of shape {regime_rows.shape} do not fit a network with "
                          f"{config.features} features; build the table with the model's schema")


def column_scale(rows: Float32Array, sign: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Mean and deviation of each column over rows (N, F) and their mirror images; a column that changes sign has
    mean 0 then."""
    values = rows.astype(np.float64)
    centre = np.where(sign < 0, 0.0, values.mean(axis=0))
    return centre.astype(np.float32), np.sqrt(np.square(values - centre).mean(axis=0)).astype(np.float32)


def window_ends(regime_rows: Float32Array, rows: Rows, window: int, ahead: int = 0) -> IntArray:
    """Rows j for which j-window+1 .. j+ahead lie inside `rows` and are complete: finite and not all zeros."""
    start, stop = rows
    part = regime_rows[start:stop]
    bad = np.concatenate(([0], np.cumsum(~(np.isfinite(part).all(axis=1) & (part != 0.0).any(axis=1)))))
    ends = np.arange(window - 1, stop - start - ahead, dtype=np.int64)
    clean = bad[ends + ahead + 1] == bad[ends - window + 1]
    return ends[clean] + start


def full_windows(regime_rows: Float32Array, window: int) -> BoolArray:
    """(m,) True where the window that ends at the row is complete."""
    full = np.zeros(len(regime_rows), np.bool_)
    full[window_ends(regime_rows, (0, len(regime_rows)), window)] = True
    return full


@torch.inference_mode()
def regime_vectors(
    net: RegimeNet, regime_rows: Float32Array, window: int, mirror_sign: Float32Array | None = None
) -> Float32Array:
    """μ of the window that ends at every row: (m, F) -> (m, latent) float32; 0 where the window is not complete.

    Causal: row j uses rows up to j only. With `mirror_sign` (F,) the vectors of the mirrored market.
    Every batch has the same shape, so that a longer table changes no bit of an earlier vector.
    """
    _check_columns(regime_rows, net.config)
    if window != net.config.window:
        raise SchemaError(f"the table's regime window is {window} rows, the network's {net.config.window}")
    vectors = np.zeros((len(regime_rows), net.config.latent), np.float32)
    if len(regime_rows) < window:
        return vectors
    rows = np.nan_to_num(np.asarray(regime_rows, np.float32))
    if mirror_sign is not None:
        rows = rows * np.asarray(mirror_sign, np.float32)
    padding = np.zeros((-(len(rows) - window + 1) % _VECTOR_BATCH, rows.shape[1]), np.float32)
    windows = torch.from_numpy(np.concatenate((rows, padding))).unfold(0, window, 1)  # (n, F, W)
    for start in range(0, len(windows), _VECTOR_BATCH):
        batch = windows[start : start + _VECTOR_BATCH].transpose(1, 2)
        first = start + window - 1
        part = net.encode_mean(batch).numpy()
        vectors[first : first + _VECTOR_BATCH] = part[: len(vectors) - first]
    vectors[~full_windows(regime_rows, window)] = 0.0
    return vectors


def save_rde(directory: Path | str, net: RegimeNet, config: RegimeConfig, metrics: dict[str, float]) -> None:
    """Write weights, configuration and figures as one folder, whole or not at all."""
    with atomic_directory(directory) as part:
        torch.save(net.state_dict(), part / _WEIGHTS)
        write_json(part / _CONFIG, {"config": config.model_dump(mode="json"), "metrics": metrics,
                                    "weights_sha256": sha256_file(part / _WEIGHTS)})


def load_rde(directory: Path | str) -> tuple[RegimeNet, dict[str, float]]:
    """The network (in eval mode) and its figures; BundleError where the folder is damaged."""
    directory = Path(directory)
    for name in (_WEIGHTS, _CONFIG):
        if not (directory / name).is_file():
            raise BundleError(f"{directory}: {name} is missing; give a folder written by save_rde")
    try:
        values = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        settings, metrics, digest = values["config"], values["metrics"], values["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{directory / _CONFIG}: damaged ({error}); export the model again") from None
    if sha256_file(directory / _WEIGHTS) != digest:
        raise BundleError(f"{directory / _WEIGHTS}: not the content that was saved; export the model again")
    config = parse_config(RegimeConfig, settings, source=str(directory / _CONFIG))
    state = torch.load(directory / _WEIGHTS, weights_only=True, map_location="cpu")
    return _network(config, state), metrics


def _network(config: RegimeConfig, state: dict[str, torch.Tensor]) -> RegimeNet:
    """A network with these weights, in eval mode; leaves torch's global generator alone."""
    with torch.random.fork_rng(devices=[]):
        net = RegimeNet(config)
    net.load_state_dict(state)
    return net.eval()

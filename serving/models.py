"""The models of a service: each a bundle on a backend. The champion decides; it can be replaced at any time."""

from __future__ import annotations

import numpy as np
import structlog

from algospace.errors import AlgoSpaceError, ConfigError
from serving.backends import Backend, BackendName, make_backend
from serving.bundle import Bundle
from serving.correction import Correction
from serving.decider import Decider, DecisionInputs, MarketState, account_record
from serving.engines import ENGINE_BACKENDS, Precision, fallback_code

_LOG = structlog.get_logger("serving")
_WARM_UP = 3


class Model:
    """One bundle, warmed up on the first of `backends` that this machine can run; engines are of `precision`.

    `fallbacks`: `name: code` per backend that it could not. ConfigError if none works. `expected`: what it decided
    on blank inputs when it was loaded, before anybody was answered by it.
    """

    def __init__(self, bundle: Bundle, backends: tuple[BackendName, ...], precision: Precision = "fp32") -> None:
        self.bundle = bundle
        self.backend, self.fallbacks = choose_backend(bundle, backends, precision)
        self.decider = Decider(bundle, self.backend)
        self.correction = Correction(bundle)
        for seed in reversed(range(_WARM_UP)):
            self.expected = self.decider.decide(self._blank_inputs(seed))

    @property
    def id(self) -> str:
        """The bundle's id."""
        return self.bundle.id

    def _blank_inputs(self, seed: int) -> DecisionInputs:
        schema = self.bundle.schema
        market = MarketState(5000.0, 5.0, (0.0, 1.0), np.zeros(3, np.float32))
        account = account_record(position=1.0, entry=4990.0, equity=1e5, day_start=1e5)
        return DecisionInputs(
            np.zeros((schema.strategic.window, schema.strategic.width), np.float32),
            np.zeros((schema.tactical.window, schema.tactical.width), np.float32),
            np.zeros(self.bundle.manifest.regime_size, np.float32), market, account, seed)


def choose_backend(bundle: Bundle, backends: tuple[BackendName, ...],
                   precision: Precision = "fp32") -> tuple[Backend, list[str]]:
    """(the first backend that works here, `name: code` per backend that did not; the log has the whole reason).

    Engines are of `precision`; what they fall back to computes in fp32, which is never the less exact one.
    """
    failures: list[str] = []
    reasons: list[str] = []
    for name in backends:
        try:
            asked = precision if name in ENGINE_BACKENDS else "fp32"
            return make_backend(name, bundle, precision=asked), failures
        except AlgoSpaceError as error:
            failures.append(f"{name}: {fallback_code(error)}")
            reasons.append(f"{name}: {error}")
            _LOG.warning("backend_fallback", backend=name, error=str(error))
    raise ConfigError(f"no configured backend works: {'; '.join(reasons)}")

"""The bundle: a directory that holds everything a decision needs, and proves that it is whole.

    vote.onnx execute.onnx [mrms.onnx] [rde.onnx]   graphs (serving.export)
    weights.npz                                     the same weights for the `torch` backend, plain arrays
    manifest.json                                   Manifest; names the SHA-256 of every file above
    manifest.sha256                                 SHA-256 of manifest.json: the bundle's id

Loading verifies every checksum, the set of files and the schema hash; a mismatch is one BundleError.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from agents.calibration import Calibration
from agents.gate import Gate, GateConfig
from agents.settings import CoreConfig, RegimeConfig, RiskConfig, Shapes
from algospace.config import FrozenConfig
from algospace.errors import BundleError, SchemaError
from algospace.features.config import FeatureConfig
from algospace.features.matrix_schema import MatrixSchema
from algospace.instruments import INSTRUMENTS, Instrument
from envs.config import CoreEnvConfig, RiskEnvConfig

MANIFEST, MANIFEST_HASH, WEIGHTS = "manifest.json", "manifest.sha256", "weights.npz"


class FixedProposal(FrozenConfig):
    """The proposer of a bundle without M-RMS: contracts, stop in ATR, target in multiples of the stop."""

    contracts: int = Field(default=1, ge=1, le=5)
    stop_atr: float = Field(default=2.0, gt=0)
    target_r: float = Field(default=2.0, gt=0)


class Networks(FrozenConfig):
    """Configurations of the networks; None for an expert that the bundle does not hold."""

    core: CoreConfig
    risk: RiskConfig | None
    regime: RegimeConfig | None


class BundleSpec(FrozenConfig):
    """What the one who trained the networks knows about them. Hashes are SHA-256 in hex."""

    instrument: str
    mask_key: int
    """Stream key of the dropout masks (algospace.seeding.mask_bank)."""
    gate: GateConfig
    calibration: Calibration | None
    env: CoreEnvConfig
    risk_env: RiskEnvConfig
    risk_unit: float = Field(gt=0)
    fixed_proposal: FixedProposal = FixedProposal()
    features: FeatureConfig = FeatureConfig()
    """Settings of the pipeline from bars to feature rows; their digest is part of the schema."""
    config_hash: str
    data_hash: str
    git_commit: str
    metrics: dict[str, float] = Field(default_factory=dict)


class Manifest(BundleSpec):
    """What the graphs mean. `matrices` is the MatrixSchema with the normaliser's statistics; `regime_size` the
    length of the regime vector; `files` the SHA-256 of every other file."""

    format: Literal[1] = 1
    matrices: dict[str, Any]
    schema_hash: str
    regime_size: int = Field(ge=1)
    networks: Networks
    files: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `id` is the SHA-256 of its manifest."""

    directory: Path
    id: str
    manifest: Manifest
    schema: MatrixSchema

    @property
    def instrument(self) -> Instrument:
        """The instrument that the policy trades."""
        return INSTRUMENTS[self.manifest.instrument]

    def path(self, graph: str) -> Path:
        """The ONNX file of `graph`: vote, execute, mrms or rde."""
        return self.directory / f"{graph}.onnx"

    def read(self, name: str) -> bytes:
        """The bytes of a file, verified: an export into the folder of a bundle in use must not mix two models.

        BundleError if they are not what the manifest names any more.
        """
        raw = _read(self.directory, name)
        if hashlib.sha256(raw).hexdigest() != self.manifest.files.get(name):
            raise BundleError(f"{self.directory}: {name} is not the one of bundle {self.id[:12]} any more; open "
                              f"the folder again")
        return raw

    def has(self, graph: str) -> bool:
        """Whether the bundle holds `graph`."""
        return f"{graph}.onnx" in self.manifest.files

    def gate(self) -> Gate:
        """The gate with its calibrated temperature and threshold."""
        fitted = self.manifest.calibration
        if fitted is None:
            return Gate(self.manifest.gate)
        return Gate(self.manifest.gate, fitted.temperature, fitted.threshold)


def network_shapes(schema: MatrixSchema, regime_size: int) -> Shapes:
    """What the networks of a schema look like."""
    return Shapes(schema.strategic.width, schema.strategic.window, schema.tactical.width, schema.tactical.window,
                  regime_size)


def is_bundle(directory: Path | str) -> bool:
    """Whether a folder looks like a bundle, whole or damaged."""
    return all((Path(directory) / name).is_file() for name in (MANIFEST, MANIFEST_HASH))


def load_bundle(directory: Path | str) -> Bundle:
    """Verify and open a bundle; BundleError, one line, if anything about it is not as written."""
    directory = Path(directory)
    if not directory.is_dir():
        raise BundleError(f"{directory}: not a bundle directory; give the folder that `algospace export` wrote")
    raw = _read(directory, MANIFEST)
    expected = _read(directory, MANIFEST_HASH).decode("ascii", "replace")
    bundle_id = hashlib.sha256(raw).hexdigest()
    if expected != bundle_id + "\n":
        raise BundleError(f"{directory}: {MANIFEST} does not match {MANIFEST_HASH}; the bundle is damaged, "
                          f"export it again")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise BundleError(f"{directory}: {MANIFEST}, {where}: {first['msg']}; the bundle was written by another "
                          f"version, export it again") from None
    _verify_files(directory, manifest)
    try:
        schema = MatrixSchema.from_dict(manifest.matrices)
    except SchemaError as error:
        raise BundleError(f"{directory}: {error}") from None
    if schema.digest() != manifest.schema_hash:
        raise BundleError(f"{directory}: the schema's hash is not the one the model was trained on; export again")
    if manifest.instrument not in INSTRUMENTS:
        raise BundleError(f"{directory}: unknown instrument '{manifest.instrument}'; use a newer version")
    return Bundle(directory, bundle_id, manifest, schema)


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError:
        raise BundleError(f"{directory}: {name} is missing or unreadable; the bundle is incomplete, export it "
                          f"again") from None


def _verify_files(directory: Path, manifest: Manifest) -> None:
    present = {path.name for path in directory.iterdir() if path.is_file()} - {MANIFEST, MANIFEST_HASH}
    strange = sorted(present - set(manifest.files))
    if strange:
        raise BundleError(f"{directory}: {strange[0]} does not belong to the bundle; remove it or export again")
    if not {"vote.onnx", "execute.onnx"} <= set(manifest.files):
        raise BundleError(f"{directory}: {MANIFEST} names no vote.onnx and execute.onnx; export again")
    for name, expected in manifest.files.items():
        if hashlib.sha256(_read(directory, name)).hexdigest() != expected:
            raise BundleError(f"{directory}: {name} does not match its checksum; the bundle is damaged, export "
                              f"it again")

"""The exported team as a service: bundles, backends, the decision gate's host, Ray Serve."""

from __future__ import annotations

from pathlib import Path

from serving.bundle import Bundle, load_bundle
from serving.decider import Decider

__all__ = ["Bundle", "Decider", "load", "load_bundle"]


def load(bundle_dir: Path | str, backend: str = "onnx") -> Decider:
    """A bundle's team and gate, ready to decide in this process. BundleError if a byte of it was changed."""
    from serving.backends import make_backend

    bundle = load_bundle(bundle_dir)
    return Decider(bundle, make_backend(backend, bundle))

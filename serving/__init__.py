"""The exported team as a service: bundles, backends, the decision gate's host, Ray Serve.

The names below are loaded when they are first used: the command line imports this package without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.bundle import Bundle, load_bundle
    from serving.decider import Decider

__all__ = ["Bundle", "Decider", "load", "load_bundle"]


def load(bundle_dir: Path | str, backend: str = "onnx") -> Decider:
    """A bundle's team and gate, ready to decide in this process. BundleError if a byte of it was changed."""
    from serving.backends import make_backend
    from serving.bundle import load_bundle
    from serving.decider import Decider

    bundle = load_bundle(bundle_dir)
    return Decider(bundle, make_backend(backend, bundle))


def __getattr__(name: str) -> Any:
    if name in ("Bundle", "load_bundle"):
        import serving.bundle as module
    elif name == "Decider":
        import serving.decider as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module 'serving' has no attribute '{name}'")
    return getattr(module, name)

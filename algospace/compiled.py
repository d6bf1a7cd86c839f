"""Where numba keeps compiled code: one folder per version of our sources.

numba notices a change of a cached function's own file, but not of the files of the functions it calls, and then
runs stale code. So the cache folder is named after a hash of every source file that holds compiled code.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

_PACKAGES = ("algospace", "envs", "agents", "training", "serving")
_KEPT_VERSIONS = 8


def use_versioned_cache() -> None:
    """Point numba at the folder for the present sources, unless NUMBA_CACHE_DIR is set. Called on import."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    root = Path(__file__).resolve().parents[1]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "algospace" / "compiled"
    folder = cache / _source_hash(root)
    try:
        fresh = not folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home: numba falls back to its own folders
    if fresh:
        _forget_old(cache)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = str(folder)


def _source_hash(root: Path) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            if b"njit" in content or b"intrinsic" in content:
                digest.update(str(path.relative_to(root)).encode() + b"\0" + content)
    return digest.hexdigest()[:20]


def _forget_old(cache: Path) -> None:
    versions = sorted(cache.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in versions[_KEPT_VERSIONS:]:
        shutil.rmtree(folder, ignore_errors=True)

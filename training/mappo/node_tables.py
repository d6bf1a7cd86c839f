"""A training table once per node: used in place where its folders exist, else fetched once and kept by hash.

    driver's node   the table lies in the run folder (or on shared storage) and is mapped there; `offer_table`
                    starts a small actor beside it that reads chunks on request
    another node    the first process that needs the table copies it chunk by chunk into
                    CACHE/<hash>/{market,experts}; the others wait at a file lock and map the same files. A folder
                    of an older run at the same place is no reason to stop

The hash covers the experts' columns and, through their manifest, every column of the market table; each file is
verified while it is written, and the folder appears under its name only when it is complete. Arrays derived from
a table (`shared_arrays`) are made by one process per node too, and again by another version of the code that makes
them. The cache keeps the KEPT folders used last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from algospace.errors import ConfigError, SchemaError
from algospace.files import atomic_directory, sha256_file, write_json
from algospace.types import AnyArray

CACHE_VARIABLE = "ALGOSPACE_CACHE"
CHUNK_BYTES = 8 << 20
WAIT_SECONDS = 60.0
KEPT = 8
_COMPLETE, _PARTS = "complete.json", ("market", "experts")
_MANIFEST, _EXPERTS = "manifest.json", "experts.json"
_RANDOM = "?" * 8  # what `tempfile` puts into the name of an unfinished folder
_MAKERS = ("tables.py", "markets.py")  # the code that derives arrays


class TableSource(Protocol):
    """Where the bytes of a table come from."""

    def sizes(self) -> dict[str, int]:
        """Relative name ("market/close.npy") -> bytes."""
        ...

    def chunk(self, name: str, offset: int) -> bytes:
        """At most CHUNK_BYTES from `offset` on; empty at the end."""
        ...


class FolderSource:
    """The files of a market table and its experts on this machine."""

    def __init__(self, market: str, experts: str) -> None:
        self._folders = dict(zip(_PARTS, (Path(market), Path(experts)), strict=True))

    def sizes(self) -> dict[str, int]:
        """See TableSource."""
        return {f"{part}/{path.name}": path.stat().st_size
                for part, folder in self._folders.items() for path in sorted(folder.iterdir()) if path.is_file()}

    def chunk(self, name: str, offset: int) -> bytes:
        """See TableSource."""
        part, file = name.split("/")
        with (self._folders[part] / file).open("rb") as stream:
            stream.seek(offset)
            return stream.read(CHUNK_BYTES)


class ActorSource:
    """The same, asked of the actor that `offer_table` started on the driver's node."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def sizes(self) -> dict[str, int]:
        """See TableSource."""
        return dict(ray.get(self._handle.sizes.remote()))

    def chunk(self, name: str, offset: int) -> bytes:
        """See TableSource."""
        return bytes(ray.get(self._handle.chunk.remote(name, offset)))


def cache_root() -> Path:
    """ALGOSPACE_CACHE, or `.cache/algospace` in the home folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "algospace") / "tables"


def offer_table(market: str, experts: str, digest: str) -> Any:
    """Start (or join) the actor that gives this table to other nodes; keep the handle as long as it is needed."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(FolderSource).options(  # type: ignore[attr-defined]
        name=_actor_name(digest), get_if_exists=True, num_cpus=0, max_restarts=-1, max_task_retries=3,
        scheduling_strategy=here).remote(market, experts)


def offer_to_other_nodes(team: Mapping[str, Any], remote_actors: int) -> list[Any]:
    """Offer a team's tables if runners or learners may start on other nodes; keep what comes back."""
    joined = any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if not remote_actors or not ray.is_initialized() or not (joined or len(ray.nodes()) > 1):
        return []
    return [offer_table(*node_table(place["market"], place["experts"], place["table_hash"]), place["table_hash"])
            for place in team.get("markets", (team,))]


def node_table(market: str, experts: str, digest: str, source: TableSource | None = None) -> tuple[str, str]:
    """Folders (market, experts) of the table with hash `digest` on this node, fetched if they are not here.

    source: default the actor of `offer_table`. SchemaError if what arrives is not what the hash promises;
    ConfigError if nobody offers the table.
    """
    here = Path(market).is_dir() and Path(experts).is_dir()
    if here and (_holds(market, experts, digest) or not (source or _is_offered(digest))):
        return market, experts  # the wrong one, too, if there is no other: opening it says what differs
    target = cache_root() / digest
    _once(target, lambda part: _fetch(part, digest, source or _offered(digest, market)))
    return str(target / _PARTS[0]), str(target / _PARTS[1])


def shared_arrays(digest: str, kind: str, make: Callable[[], dict[str, AnyArray]]) -> dict[str, AnyArray]:
    """Arrays derived from table `digest`, computed by one process of this node and mapped by all.

    The maps are copy-on-write: writing to one changes this process's copy only.
    """
    target = cache_root() / f"{digest}.{kind}.{_code_hash()[:12]}"

    def write(part: Path) -> None:
        for name, values in make().items():
            np.save(part / f"{name}.npy", values, allow_pickle=False)

    _once(target, write)
    return {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in sorted(target.glob("*.npy"))}


@lru_cache(maxsize=1)
def _code_hash() -> str:
    """The cache outlives an upgrade: arrays that older code derived must not pass for today's."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _MAKERS)).hexdigest()


def _actor_name(digest: str) -> str:
    return f"algospace-table-{digest[:32]}"


def _holds(market: str, experts: str, digest: str) -> bool:
    """Whether the folders' descriptions are those that the hash covers."""
    found, manifest = Path(experts) / _EXPERTS, Path(market) / _MANIFEST
    return (found.is_file() and manifest.is_file() and sha256_file(found) == digest
            and json.loads(found.read_text())["market"] == sha256_file(manifest))


def _is_offered(digest: str) -> bool:
    if not ray.is_initialized():
        return False
    try:
        ray.get_actor(_actor_name(digest))
    except ValueError:
        return False
    return True


def _offered(digest: str, market: str) -> TableSource:
    """The actor of the driver's node; it may still be starting."""
    if not ray.is_initialized():
        raise ConfigError(f"{market}: no such market table on this machine; give a path that exists here")
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return ActorSource(ray.get_actor(_actor_name(digest)))
        except ValueError:
            if time.monotonic() > deadline:
                raise ConfigError(f"{market}: this node has no such market table and no driver offers it; put the "
                                  f"run folder on storage that all nodes share") from None
            time.sleep(0.2)


def _once(target: Path, write: Callable[[Path], None]) -> None:
    """Have folder `target` written by one process of this node; the others wait. Old folders make room."""
    with _locked(target):
        if not _complete(target):
            shutil.rmtree(target, ignore_errors=True)
            for part in target.parent.glob(f".{target.name}.{_RANDOM}.part"):  # of a copy that was killed
                shutil.rmtree(part, ignore_errors=True)
            with atomic_directory(target) as part:
                write(part)
                write_json(part / _COMPLETE, {str(path.relative_to(part)): path.stat().st_size
                                              for path in sorted(part.rglob("*")) if path.is_file()})
            _prune(target)
        os.utime(target)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process per node at a time; the kernel frees the lock of a killed one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _prune(newest: Path) -> None:
    """Remove the folders used longest ago; whoever has mapped their files keeps them until it ends."""
    folders = [path for path in newest.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)[KEPT:]:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def _complete(target: Path) -> bool:
    """Whether every file of a finished copy is still there in its full length."""
    record = target / _COMPLETE
    if not record.is_file():
        return False
    sizes: dict[str, int] = json.loads(record.read_text())
    return all((target / name).is_file() and (target / name).stat().st_size == size
               for name, size in sizes.items())


def _fetch(part: Path, digest: str, source: TableSource) -> None:
    for folder in _PARTS:
        (part / folder).mkdir()
    found = {name: _copy(source, name, part / name) for name in source.sizes()}
    _verify(part, found, digest)


def _copy(source: TableSource, name: str, path: Path) -> str:
    """Write one file; its SHA-256."""
    digest, offset = hashlib.sha256(), 0
    with path.open("wb") as stream:
        while data := source.chunk(name, offset):
            stream.write(data)
            digest.update(data)
            offset += len(data)
    return digest.hexdigest()


def _verify(part: Path, found: dict[str, str], digest: str) -> None:
    """The chain of hashes: experts.json -> its files and the market's manifest -> the market's files."""
    wanted = {f"experts/{_EXPERTS}": digest}
    try:
        experts = json.loads((part / "experts" / _EXPERTS).read_text())
        wanted |= {f"experts/{name}": value for name, value in experts["files"].items()}
        wanted[f"market/{_MANIFEST}"] = experts["market"]
        manifest = json.loads((part / "market" / _MANIFEST).read_text())
        wanted |= {f"market/{name}": value for name, value in manifest["files"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise SchemaError(f"the table {digest[:12]} that another node sent is not readable ({error}); check the "
                          f"run folder on the driver's node") from None
    for name, value in wanted.items():
        if found.get(name) != value:
            raise SchemaError(f"{name} of the table {digest[:12]} arrived changed or not at all; check the run "
                              f"folder on the driver's node")

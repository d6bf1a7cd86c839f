"""Bundles and their recorded checks from the MLflow registry: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

MLflow is asked by a process of its own, `python -m serving.mlflow_source`, which reads one JSON request on stdin
and answers with one JSON line: imported into a replica it would cost 200 MB for a few calls a month.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algospace.errors import BundleError, ConfigError
from serving.aliases import Check, ModelRef

CHECKS = ("beats_baselines", "deflated_sharpe", "alarm", "control", "gate")
"""What training.promotion records with a version: tags `check.NAME` = `passed: ...` or `failed: ...`."""
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_TIMEOUT_S = 300.0
_MANIFEST, _ID = "manifest.json", "manifest.sha256"


def is_registry_uri(source: str) -> bool:
    """Whether `source` names a registered model instead of a folder."""
    return source.startswith("models:")


def named(source: str) -> tuple[str, str]:
    """(name, version) of a registry's URI, "" for a version that it does not name; ConfigError if it is none."""
    parts = _URI.fullmatch(source)
    if parts is None:
        raise ConfigError(f"{source}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return parts["name"], parts["version"] or ""


@dataclass(frozen=True)
class Found:
    """A downloaded bundle: its folder, and the registered model's name and version."""

    folder: str
    name: str
    version: str


class Registry:
    """The registry at `uri` as a service uses it; ConfigError where it has none or cannot be reached.

    name: the model whose versions are searched for a folder's bundle. cache: folder of downloads.
    """

    def __init__(self, uri: str | None, name: str, cache: Path | None) -> None:
        self._uri, self._name = uri, name
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._cache = cache or home / "algospace" / "bundles"

    def fetch(self, source: str) -> Found:
        """Download the bundle that `source` means, unless it is here already."""
        named(source)
        return Found(**self._ask("fetch", source=source, cache=str(self._cache)))

    def kept(self, bundle: str) -> Path | None:
        """The folder of a bundle that was downloaded before and is whole, by its id; nobody is asked."""
        return _kept(self._cache, bundle)

    def folder(self, ref: ModelRef) -> Path:
        """Where a bundle is on this machine: its folder, or, where another node has downloaded it, our own
        download of the same version."""
        folder = Path(ref.folder)
        if not ref.version or folder.is_dir():
            return folder
        return self.kept(ref.id) or Path(self.fetch(f"models:/{ref.name}/{ref.version}").folder)

    def checks(self, ref: ModelRef) -> tuple[Check, ...]:
        """The checks recorded for a bundle; a failed one says so where nothing is recorded."""
        if not self._uri:
            return (Check("recorded", False, "no registry is configured, so no checks are known; set "
                                             "app.lifecycle.registry to MLflow's tracking URI, where `algospace "
                                             "promote RUN` records them, and restart"),)
        tags = self._ask("tags", name=ref.name or self._name, version=ref.version, bundle=ref.id)["tags"]
        return recorded_checks(tags, ref.id)

    def note(self, aliases: Mapping[str, ModelRef], ended: Mapping[str, ModelRef]) -> str:
        """Point the registry's aliases at these bundles, where it knows them; says which were moved. Those that it
        does not know, and aliases of nothing, are taken from the bundle that had them until now (`ended`)."""
        wanted, before = ({alias: {"name": ref.name or self._name, "version": ref.version, "bundle": ref.id}
                           for alias, ref in refs.items()} for refs in (aliases, ended))
        return str(self._ask("note", aliases=wanted, ended=before)["noted"])

    def record(self, ref: ModelRef, tag: str, text: str) -> str:
        """Set a tag of a bundle's version; which one that is, "" where the registry knows none."""
        return str(self._ask("record", name=ref.name or self._name, version=ref.version, bundle=ref.id, tag=tag,
                             text=text)["recorded"])

    @property
    def configured(self) -> bool:
        """Whether there is a registry at all."""
        return bool(self._uri)

    def _ask(self, what: str, **request: Any) -> dict[str, Any]:
        if not self._uri:
            raise ConfigError("no registry is configured; set app.lifecycle.registry to MLflow's tracking URI")
        try:
            done = subprocess.run([sys.executable, "-m", "serving.mlflow_source"], text=True, capture_output=True,
                                  input=json.dumps({"what": what, "uri": self._uri, **request}),
                                  timeout=_TIMEOUT_S, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{self._uri}: the registry did not answer within {_TIMEOUT_S:g} s") from None
        lines = done.stdout.strip().splitlines()
        if not lines:
            raise ConfigError(f"{self._uri}: the registry did not answer: {done.stderr.strip()[-300:]}")
        answer: dict[str, Any] = json.loads(lines[-1])
        if "error" in answer:
            raise ConfigError(f"{self._uri}: {answer['error']}")
        return answer


def recorded_checks(tags: Mapping[str, str], bundle: str) -> tuple[Check, ...]:
    """The checks of a promotion (CHECKS) in a version's tags; one that is missing has not passed."""
    if not tags:
        return (Check("recorded", False, "the registry does not know this bundle; register its run and run "
                                         "`algospace promote RUN`"),)
    if tags.get("bundle") != bundle:
        return (Check("recorded", False, f"the version is of bundle {tags.get('bundle', 'unknown')[:12]}"),)
    checks = []
    for name in CHECKS:
        text = tags.get(f"check.{name}", "missing: never recorded; run `algospace promote RUN`")
        state, _, found = text.partition(": ")
        checks.append(Check(name, state == "passed", found))
    return tuple(checks)


def _main() -> None:
    """One request on stdin, one answer on stdout."""
    request = json.load(sys.stdin)
    known: dict[str, Callable[..., dict[str, Any]]] = {"fetch": _fetch, "tags": _tags, "note": _note,
                                                    "record": _record}
    what = known[request.pop("what")]
    with redirect_stdout(sys.stderr):
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        import mlflow
        from mlflow.exceptions import MlflowException

        uri = request.pop("uri")
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            answer = what(mlflow.MlflowClient(uri, uri), **request)
        except (MlflowException, OSError, BundleError, ConfigError) as error:
            answer = {"error": " ".join(str(error).split())[:500]}
    sys.stdout.write(json.dumps(answer) + "\n")


def _fetch(client: Any, source: str, cache: str) -> dict[str, Any]:
    import mlflow

    from serving.bundle import load_bundle

    name, version = named(source)
    alias = source.partition("@")[2]
    found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    home = Path(cache)
    home.mkdir(parents=True, exist_ok=True)
    kept = _kept(home, found.tags.get("bundle", ""))
    if kept is None:
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            got = mlflow.artifacts.download_artifacts(f"models:/{name}/{found.version}", dst_path=scratch)
            folders = [path.parent for path in Path(got).rglob(_MANIFEST) if (path.parent / _ID).is_file()]
            if len(folders) != 1:
                raise ConfigError(f"models:/{name}/{found.version} holds {len(folders)} bundles instead of one")
            bundle = load_bundle(folders[0]).id
            kept = home / bundle
            if kept.exists() and _kept(home, bundle) is None:
                os.replace(kept, Path(scratch) / "damaged")
            try:
                os.replace(folders[0], kept)
            except OSError:
                if not kept.exists():  # otherwise another replica was faster
                    raise
    return {"folder": str(kept.resolve()), "name": name, "version": str(found.version)}


def _kept(cache: Path, bundle: str) -> Path | None:
    """A bundle's folder in a cache; None if it is not there or, behind a power cut, not whole."""
    from serving.bundle import load_bundle  # two seconds, which a process that asks for tags does not need

    folder = cache / bundle
    try:
        return folder if load_bundle(folder).id == bundle else None
    except BundleError:
        return None


def _version(client: Any, name: str, version: str, bundle: str) -> Any:
    """The version with this number, or else of this bundle; None if there is none."""
    if version:
        return client.get_model_version(name, version)
    found = [v for v in client.search_model_versions(f"name='{name}'") if v.tags.get("bundle") == bundle]
    return max(found, key=lambda v: int(v.version), default=None)


def _tags(client: Any, name: str, version: str, bundle: str) -> dict[str, Any]:
    found = _version(client, name, version, bundle)
    return {"tags": {} if found is None else dict(found.tags)}


def _note(client: Any, aliases: dict[str, dict[str, str]], ended: dict[str, dict[str, str]]) -> dict[str, Any]:
    noted, moved = [], set()
    for alias, ref in aliases.items():
        found = _version(client, **ref)
        if found is not None and found.tags.get("bundle") == ref["bundle"]:
            client.set_registered_model_alias(ref["name"], alias, found.version)
            noted.append(f"models:/{ref['name']}@{alias} is version {found.version}")
            moved.add((ref["name"], alias))
    for alias, ref in ended.items():
        found = _version(client, **ref)
        if found is None or (ref["name"], alias) in moved:
            continue
        if str(client.get_registered_model(ref["name"]).aliases.get(alias)) == str(found.version):
            client.delete_registered_model_alias(ref["name"], alias)
            noted.append(f"models:/{ref['name']}@{alias} is none")
    return {"noted": "; ".join(noted) or "nothing: the registry does not know these bundles"}


def _record(client: Any, name: str, version: str, bundle: str, tag: str, text: str) -> dict[str, Any]:
    found = _version(client, name, version, bundle)
    if found is None or found.tags.get("bundle") != bundle:
        return {"recorded": ""}
    client.set_model_version_tag(name, found.version, tag, text)
    return {"recorded": f"models:/{name}/{found.version}"}


if __name__ == "__main__":
    _main()

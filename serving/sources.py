"""What a service is started from: a bundle's folder, or a model of the registry."""

from __future__ import annotations

from algospace.errors import ConfigError
from serving.aliases import ModelRef
from serving.bundle import Bundle, load_bundle
from serving.lifecycle import LifecycleSettings
from serving.mlflow_source import Registry, is_registry_uri, named


def find_bundle(source: str, settings: LifecycleSettings) -> tuple[Bundle, str]:
    """The bundle that a folder or `models:/...` means, and what to ask for to get the same again anywhere.

    An alias may be moved at any time; the second value names the version that it stands for now and, behind a `#`,
    the bundle. Who asks for that again gets this bundle or ConfigError, and needs no registry where it is cached.
    """
    if not is_registry_uri(source):
        bundle = load_bundle(source)
        return bundle, str(bundle.directory.resolve())
    wanted, _, known = source.partition("#")
    registry = Registry(settings.registry, settings.name, settings.cache)
    kept = registry.kept(known) if known else None
    if kept is not None:
        return load_bundle(kept), source
    found = registry.fetch(wanted)
    bundle = load_bundle(found.folder)
    if known not in ("", bundle.id):
        raise ConfigError(f"{wanted}: holds bundle {bundle.id[:12]} now, the service was started with "
                          f"{known[:12]}; start it again")
    return bundle, f"models:/{found.name}/{found.version}#{bundle.id}"


def reference(bundle: Bundle, source: str | None) -> ModelRef:
    """The champion that a service starts with; `source`: find_bundle's second value, None for the folder."""
    folder = str(bundle.directory)
    if source is None or not is_registry_uri(source):
        return ModelRef(bundle.id, folder, folder)
    uri = source.partition("#")[0]
    return ModelRef(bundle.id, folder, uri, *named(uri))

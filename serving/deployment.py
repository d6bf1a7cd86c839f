"""The decision service on Ray Serve: one deployment behind HAProxy, started and stopped as a whole.

Ray and Serve read their switches when they are first imported, so this module imports them late.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import resource
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
from pydantic import Field, model_validator

from algospace.config import FrozenConfig
from algospace.errors import ConfigError, InternalError
from algospace.ray_token import own_ray_token
from serving.accepting import accept_many
from serving.app import create_app
from serving.auth import token_digest
from serving.ending import end_all, end_process, haproxy_processes, ray_processes, shut_serve, sigterm_exits
from serving.hub_actor import close_hub, open_hub
from serving.hub_link import HubLink
from serving.logs import configure_logs
from serving.security.gate import Security, make_authenticator
from serving.service import AppSettings
from serving.sources import find_bundle

APPLICATION = "algospace"
_LOG = structlog.get_logger(__name__)
_READY_TIMEOUT_S = 120.0
_LONGEST_SCRATCH = 26
_REPLICA_PORTS = 64
_RETRIED_BYTES = 65_536
_REPLICA_PORT_RANGE = (10_240, 32_768)
_MOST_CONNECTIONS = 20_000
_OTHER_FILES = 200

SERVE_FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
    # A refused connection means a dead replica. With three of them (the default) the dead one, which has the
    # fewest connections, is chosen again, after a second's pause: by then a request is past its deadline.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    # What a replica that was killed has not answered goes to another one, if it is short enough to be kept.
    # To do it twice does no harm: decisions are pure, and a change that was made is refused the second time.
    # Before that HAProxy pauses for as long as a connection may take, a second at most. Serve has a setting for it
    # in whole seconds, and writes this one into HAProxy's defaults as it is, a second line, too.
    # A third one closes what has sent no request: else it may stay silent for an hour, and 4,096 of those are all
    # that HAProxy takes by default.
    "RAY_SERVE_HAPROXY_RETRY_ON":
        "conn-failure empty-response\n    timeout connect 100ms\n    timeout http-request 10s",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_RETRIED_BYTES),
    # Serve waits this long, requests or none, before a replica may end (30 s by default).
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
"""Environment of every Ray process of a service, on one machine or many; for `ray start` and KubeRay it stands in
configs/cluster (serve.env, rayservice.yaml). HAProxy is the ingress, and nothing extra is done per request."""


class AutoscalingSettings(FrozenConfig):
    """Between `replicas` and `max_replicas`, by the requests that each replica has in work."""

    max_replicas: int = Field(ge=1, le=256)
    target_ongoing_requests: float = Field(default=4.0, gt=0)
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0)


class ServeSettings(FrozenConfig):
    """One deployment, of fixed size unless `autoscaling` is set. A stale decision is worse than a 503, so queues
    are short."""

    app: AppSettings = AppSettings()
    replicas: int = Field(default=1, ge=1, le=64)
    """At least 2 in production, so that one may die."""
    autoscaling: AutoscalingSettings | None = None
    drain_s: float = Field(default=5.0, ge=0, le=600)
    """What a replica that is taken away gets for the requests it has in work."""
    cpus_per_replica: float = Field(default=0.5, ge=0)
    max_ongoing_requests: int = Field(default=32, ge=1)
    max_queued_requests: int = Field(default=64, ge=-1)
    cluster_cpus: int = Field(default=2, ge=1)
    """CPUs of the Ray instance that is started where none runs."""

    @property
    def slots(self) -> int:
        """What Serve calls ongoing requests of a replica: an open socket of the stream is one of them, too, and
        must not take a decision's place."""
        return self.max_ongoing_requests + self.app.stream.max_clients

    @model_validator(mode="after")
    def _there_is_room_to_grow(self) -> Self:
        if self.autoscaling is not None and self.autoscaling.max_replicas < self.replicas:
            raise ValueError(f"autoscaling.max_replicas = {self.autoscaling.max_replicas} is less than replicas = "
                             f"{self.replicas}, the least")
        return self


def serve_environment(scratch: Path) -> dict[str, str]:
    """SERVE_FLAGS, and what every Ray process of a service on this machine alone has beside them.

    Files and ports are its own: Serve's replicas share ports between clusters of one machine (SO_REUSEPORT), and
    requests to one service would be answered by another.
    """
    first = free_ports(_REPLICA_PORTS + 2)
    stats, metrics = first + _REPLICA_PORTS, first + _REPLICA_PORTS + 1
    return {
        **SERVE_FLAGS,
        # No load balancer in front chooses between machines, which would have to hear of this one's end (30 s).
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_most_connections()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(scratch / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _REPLICA_PORTS - 1),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
    }


def _most_connections() -> int:
    """What HAProxy may hold at once. It takes up to two sockets and a pipe's share, 2.5 open files, for each, and
    does not start where that is more than the hard limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(_MOST_CONNECTIONS, (limit - _OTHER_FILES) * 2 // 5)


def _scratch_directory() -> Path:
    """A new folder whose path leaves room for HAProxy's sockets (97 bytes, 70 of them Serve's)."""
    scratch = Path(tempfile.mkdtemp(prefix="as-"))
    if len(str(scratch)) > _LONGEST_SCRATCH:
        scratch.rmdir()
        raise ConfigError(f"{scratch.parent}: too long for a folder of sockets; set TMPDIR to a shorter path")
    return scratch


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


def port_blocks(count: int) -> range:
    """The first port of every block of `count` that lies wholly in `_REPLICA_PORT_RANGE`."""
    lowest, end = _REPLICA_PORT_RANGE
    return range(lowest, end - count + 1, count)


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports, below the ephemeral ones, that nobody listens on now."""
    blocks = list(port_blocks(count))
    random.SystemRandom().shuffle(blocks)  # two services that start together should not meet
    for first in blocks:
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise InternalError(f"no {count} neighbouring free ports between {_REPLICA_PORT_RANGE[0]} and "
                        f"{_REPLICA_PORT_RANGE[1]}")


class RunningService:
    """A started service. Use as a context manager, or call `stop`."""

    def __init__(self, url: str, token: str, model: str, owns_ray: bool) -> None:
        self.url, self.token, self.model = url, token, model
        self._owns_ray, self._stopped = owns_ray, False
        self._scratch: Path | None = None
        self._before: dict[str, str | None] = {}

    def start_ray(self, cpus: int) -> None:
        """A local Ray instance in an environment of its own; `stop` ends it, however far this has come."""
        import ray

        with sigterm_exits():
            self._scratch = _scratch_directory()
            self._before = _set_environment(serve_environment(self._scratch))
            own_ray_token()
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                     logging_level="ERROR", namespace="serve")

    def stop(self) -> None:
        """End Serve, and Ray if it was started for this service; no process of theirs is left. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        import ray

        proxies = list(haproxy_processes(self._scratch)) if self._scratch else []
        try:
            if ray.is_initialized():
                shut_serve()
                close_hub()
        finally:  # a cluster that has died does not keep the rest from ending
            if self._owns_ray:
                ray.shutdown()
            for pid in proxies:
                end_process(pid)
            if self._scratch:
                end_all(partial(ray_processes, self._scratch))
            self._restore_environment()

    def _restore_environment(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()


def start_service(source: Path | str, token: str, port: int | None = None,
                  settings: ServeSettings | None = None) -> RunningService:
    """Start the service and return once it answers. BundleError or ConfigError before anything is started if the
    bundle, the port, the files of its security or its size are bad.

    `source`: a bundle's folder, or `models:/NAME@ALIAS`, whose version of now every replica will get.
    Where Ray is already initialised it is used as it is, and left running; otherwise a local instance of
    `cluster_cpus` is started. `port` None takes a free one; ConfigError if a given one is taken.
    """
    settings = settings or ServeSettings()
    bundle, pinned = find_bundle(str(source), settings.app.lifecycle)
    if port is not None and not _is_free(port):
        raise ConfigError(f"port {port} is taken; give another --port or stop what listens there")
    port = port or free_port()
    security = settings.app.security
    Security(security, make_authenticator(security, token_digest(token)))  # Serve would try replicas for minutes
    import ray

    owns_ray = not ray.is_initialized()
    wanted = settings.replicas * settings.cpus_per_replica
    if owns_ray and wanted > settings.cluster_cpus:  # Serve would wait for ever
        raise ConfigError(f"{settings.replicas} replicas of cpus_per_replica = {settings.cpus_per_replica:g} take "
                          f"{wanted:g} CPUs, Ray is started with cluster_cpus = {settings.cluster_cpus}; raise "
                          "that in the settings, or ask for fewer replicas")
    service = RunningService(f"http://127.0.0.1:{port}", token, bundle.id, owns_ray)
    try:
        if owns_ray:
            service.start_ray(settings.cluster_cpus)
        try:
            _deploy(pinned, token_digest(token), port, settings)
        except ray.exceptions.RayError as error:  # Serve gives its proxy 60 s; an overloaded machine needs more
            _LOG.warning("serve_start_retried", error=type(error).__name__)
            shut_serve()
            _deploy(pinned, token_digest(token), port, settings)
        _wait_until_ready(service.url)
    except BaseException:
        service.stop()
        raise
    return service


def build_application(source: str, digest: bytes, settings: ServeSettings) -> Any:
    """The Serve application (for `serve.run`). `source`: as serving.sources.find_bundle gives it."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    deployment = serve.deployment(
        name="decider", **_size(settings), max_ongoing_requests=settings.slots,
        max_queued_requests=settings.max_queued_requests, backpressure_config=BackpressureConfig(retry_after_s=1),
        ray_actor_options={"num_cpus": settings.cpus_per_replica}, graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=0.5)
    values = settings.app.model_dump(mode="json")
    values["metrics"]["replicas"] = settings.replicas
    shared = settings.replicas > 1 or settings.autoscaling is not None
    return deployment(serve.ingress()(Replica)).bind(source, digest, values, shared)


def _size(settings: ServeSettings) -> dict[str, Any]:
    """How many replicas, as Serve's options say it."""
    growth = settings.autoscaling
    if growth is None:
        return {"num_replicas": settings.replicas}
    return {"autoscaling_config": {
        "min_replicas": settings.replicas, "initial_replicas": settings.replicas, **growth.model_dump()}}


class Replica:
    """One replica: its own bundle, backend and application; several share a hub (serving.hub_actor)."""

    async def __init__(self, source: str, digest: bytes, settings: dict[str, Any],  # type: ignore[misc]
                       shared: bool) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # for torch, should a backend or an explanation need it
        # uvicorn believes X-Forwarded-For from its own machine, so from HAProxy, which hands on anybody's
        os.environ["FORWARDED_ALLOW_IPS"] = ""
        app_settings = AppSettings.model_validate(settings)
        configure_logs(app_settings.logs)
        accept_many(asyncio.get_running_loop())  # Serve listens once this is done
        self._link: HubLink | None = None
        bundle, source = find_bundle(source, app_settings.lifecycle)
        self._app = create_app(bundle, app_settings, make_authenticator(app_settings.security, digest), source)
        if shared:
            service = self._app.state.service
            self._link = HubLink(service, open_hub(app_settings.stream, app_settings.service))
            await self._link.start()
        gc.collect()
        gc.freeze()  # what was loaded stays; no collection walks it in the middle of a request

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application that Serve routes requests to."""
        return self._app

    async def check_health(self) -> None:
        """Serve asks every ten seconds; a replica that fails three times is replaced. InternalError if not ready.

        Async, so that the self-test runs in the event loop like every decision.
        """
        why = self._app.state.service.not_ready()
        if why is not None:
            raise InternalError(f"this replica is not ready: {why}")

    def __del__(self) -> None:
        """Serve calls it when a replica ends, after its last answers and the application's own end."""
        if not hasattr(self, "_app"):  # it never began
            return
        self._app.state.service.drain()
        self._app.state.service.life.close()
        if self._link is not None:
            self._link.close()


def _deploy(source: str, digest: bytes, port: int, settings: ServeSettings) -> None:
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logging_config = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=logging_config)
    serve.run(build_application(source, digest, settings), name=APPLICATION, route_prefix="/",
              logging_config=logging_config)


def _set_environment(values: dict[str, str]) -> dict[str, str | None]:
    """Set variables for this process and its children; what they were before.

    InternalError if Serve has already been imported with other switches.
    """
    constants = sys.modules.get("ray.serve._private.constants")
    if constants is not None and not constants.RAY_SERVE_ENABLE_HA_PROXY:
        raise InternalError("ray.serve was imported before the service's environment was set")
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    return before


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/v1/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise InternalError(f"the service did not become ready within {_READY_TIMEOUT_S:.0f} s")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True

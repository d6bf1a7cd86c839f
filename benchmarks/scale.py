"""Features at scale: eleven years of one market, memory against length of history, many instruments at a time.

    python -m benchmarks.scale            # synthetic markets; with ../shared/data or ALGOSPACE_DATA all of it
    python -m benchmarks.scale FOLDER     # the same with the data in FOLDER
    python -m benchmarks.scale --quick    # 10 synthetic markets instead of 100, no real data

Every figure is of a process of its own: seconds on the clock, processor seconds, peak memory (VmHWM; ru_maxrss
would count what a process inherits). Two engines do the same jobs: `local`, one core, is the peer of `ray`, two.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from algospace.features import FeatureConfig, build, write_table
from algospace.features.blocks import BlocksReport, FeatureJob, build_blocks, peak_bytes
from algospace.features.engines import Say, failures, run_jobs
from algospace.instruments import instrument
from algospace.marketdata import Catalog, ImportOptions, import_file
from algospace.marketdata.synthetic import generate
from algospace.memory import release_unused

FRONT = {"front": "volume"}
# job name: (symbol, path below the data folder, import options)
REAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "NQ-1m": ("NQ", "nq_1m", {}), "ES-1m": ("ES", "es_1m", {}),
    "NQ-30m": ("NQ", "nq_cl_30m_volume/nq_30m_vol.parquet", {}),
    "CL-30m": ("CL", "nq_cl_30m_volume/cl_30m_vol.parquet", {}),
    "MES-1h": ("MES", "futures_hourly/hour_SP500_micro.parquet", FRONT),
    "MNQ-1h": ("MNQ", "futures_hourly/hour_NASDAQ_micro.parquet", FRONT),
    "YM-1h": ("YM", "futures_hourly/hour_DOW.parquet", FRONT),
    "RTY-1h": ("RTY", "futures_hourly/hour_RUSSELL.parquet", FRONT),
    "SPY-1m": ("SPY", "equities/spy_1m_2025_09_2026_03.parquet", {}),
    "QQQ-1m": ("QQQ", "equities/qqq_1m_2025_09_2026_03.parquet", {}),
    "VIX-5m": ("VIX", "equities/vix_5m_2025_08_2026_02.parquet", {}),
    "BTCUSD-1m": ("BTCUSD", "btc_1m/btcusd_1m_2018h1.parquet", {}),
    "VIX-1d": ("VIX", "daily/vix_1d.parquet", {"max_bad_fraction": 0.01}),
}
SYNTHETIC, QUICK, SYNTHETIC_BARS = 100, 10, 30_000  # base bars each: five months
LIMITS = {"import": 10.0, "features": 40.0, "bytes": 1.5e9, "lean": 0.5e6, "regime": 60e3}


def main() -> int:
    """Print every figure; the number of missed targets is the exit code."""
    quick = "--quick" in sys.argv
    given = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    data = None if quick else next((p for p in [*given, *_usual_places()] if p.is_dir()), None)
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="algospace-scale-") as name:
        scratch = Path(name)
        if data is not None:
            missed += eleven_years(data, scratch)
            memory_of_history(scratch)
            missed += many("all real markets", scratch / "real", real_jobs(data, scratch))
        count = QUICK if quick else SYNTHETIC
        missed += many(f"{count} synthetic markets", scratch / "synthetic", synthetic_jobs(scratch, count))
    for line in missed:
        print(f"missed: {line}")
    return len(missed)


def _usual_places() -> list[Path]:
    named = os.environ.get("ALGOSPACE_DATA")
    return [Path(named)] if named else [Path(__file__).resolve().parents[2] / "shared" / "data"]


# Steps that run in a process of their own: name -> function of text arguments, its result printed as JSON.


def step_import(source: str, out: str) -> dict[str, Any]:
    """Files to catalog, with report and quarantine."""
    result = import_file(source, "NQ")
    written = Catalog(out).write_import("NQ", result)
    return {"rows": len(result.bars), "months": written.months}


def step_features(catalog: str, out: str, regime: str) -> dict[str, Any]:
    """Catalog to feature file; `build` alone is timed too."""
    bars = Catalog(catalog).read("NQ")
    config = FeatureConfig(regime=regime == "regime")
    build(bars.slice(0, 1_000), instrument("NQ"), config)  # loads the compiled code
    begin, cpu = time.perf_counter(), time.process_time()
    table = build(bars, instrument("NQ"), config)
    built, cpu = time.perf_counter() - begin, time.process_time() - cpu
    del bars
    release_unused()
    write_table(table, out)
    return {"rows": len(table), "build_s": built, "build_cpu_s": cpu}


def step_blocks(catalog: str, out: str, months: str, regime: str) -> dict[str, Any]:
    """Catalog to partitioned features, the first so many months."""
    from algospace.features.block_source import open_source

    source = open_source(catalog, instrument("NQ"))
    source = source._replace(months=source.months[:int(months)])
    report = build_blocks(source, instrument("NQ"), FeatureConfig(regime=regime == "regime"), out)
    state = max(Path(out).glob("*.state"))
    return {"rows": report.rows, "state_bytes": state.stat().st_size}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "import": step_import, "features": step_features, "blocks": step_blocks}


def alone(step: str, *arguments: object) -> dict[str, Any]:
    """A step in its own process: what it returns, `s` on the clock and `bytes` at the peak."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "benchmarks.scale", f"--step={step}", *map(str, arguments)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{step}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "s": time.perf_counter() - begin}


def eleven_years(data: Path, scratch: Path) -> list[str]:
    """Import and features of 3.7 M one-minute bars of NQ."""
    print("eleven years of NQ, 1-minute bars; each line one process, imports of Python included in seconds")
    catalog = scratch / "nq"
    imported = alone("import", data / "nq_1m", catalog)
    print(f"  files to catalog        {imported['s']:6.1f} s {_gb(imported)}  {imported['rows']} bars "
          f"({imported['cpu_s']:.1f} s of processor)")
    missed = _over("import", imported["s"], LIMITS["import"], imported)
    for regime in ("lean", "regime"):
        found = alone("features", catalog, scratch / f"{regime}.parquet", regime)
        speed = found["rows"] / found["build_cpu_s"]
        print(f"  catalog to file, {regime:6} {found['s']:6.1f} s {_gb(found)}  build {found['build_s']:.2f} s "
              f"({found['build_cpu_s']:.2f} s of processor), {speed / 1e3:.0f} k base bars/s")
        missed += _over(f"features, {regime}", found["s"], LIMITS["features"], found)
        if speed < LIMITS[regime]:
            missed.append(f"{regime}: {speed / 1e3:.0f} k base bars/s, target {LIMITS[regime] / 1e3:.0f} k")
    return missed


def memory_of_history(scratch: Path) -> None:
    """Peak memory of the block-wise build against the length of history."""
    print("\nblock by block, all columns: peak memory against history")
    for months in (1, 12, 48, 132):
        found = alone("blocks", scratch / "nq", scratch / f"blocks-{months}", months, "regime")
        print(f"  {months:4d} months {found['rows']:7d} rows {found['s']:6.1f} s {_gb(found)}  "
              f"state {found['state_bytes'] / 1e3:.0f} kB")


def _gb(found: dict[str, Any]) -> str:
    return f"{found['bytes'] / 1e9:5.2f} GB"


def _over(what: str, seconds: float, limit: float, found: dict[str, Any]) -> list[str]:
    over = [f"{what}: {seconds:.1f} s, target {limit:.0f} s"] if seconds > limit else []
    return over + ([f"{what}:{_gb(found)}, target 1.5 GB"] if found["bytes"] > LIMITS["bytes"] else [])


def real_jobs(data: Path, scratch: Path) -> list[FeatureJob]:
    """Every real market as a catalog of its own."""
    jobs = []
    for name, (symbol, path, values) in REAL.items():
        catalog = scratch / "nq" if name == "NQ-1m" else scratch / "catalogs" / name
        if not catalog.is_dir():
            result = import_file(data / path, symbol, ImportOptions(**values))
            Catalog(catalog).write_import(symbol, result)
        jobs.append(FeatureJob(name, instrument(symbol), catalog, Path()))
    return jobs


def synthetic_jobs(scratch: Path, count: int) -> list[FeatureJob]:
    """Markets of the two rich scenarios, a seed each."""
    begin = time.perf_counter()
    jobs = []
    for seed in range(count):
        scenario = ("session", "stress")[seed % 2]
        catalog = scratch / "synthetic-catalogs" / f"{scenario}-{seed:03d}"
        Catalog(catalog).write("SYNTH", generate(scenario, seed, SYNTHETIC_BARS).bars)
        jobs.append(FeatureJob(catalog.name, instrument("SYNTH"), catalog, Path()))
    print(f"\n{count} synthetic markets generated and written in {time.perf_counter() - begin:.1f} s")
    return jobs


def many(what: str, out: Path, jobs: Sequence[FeatureJob]) -> list[str]:
    """The same jobs by both engines."""
    print(f"\n{what}")
    found: dict[str, dict[str, BlocksReport]] = {}
    seconds: dict[str, float] = {}
    waited: dict[str, float] = {}  # until the first block: Ray starts, workers import
    for engine in ("local", "ray"):
        placed = [FeatureJob(job.name, job.instrument, job.source, out / engine / job.name) for job in jobs]
        begin = time.perf_counter()
        told: list[float] = []
        reports = _engine(engine, placed, lambda block, told=told: told.append(time.perf_counter()))
        seconds[engine] = time.perf_counter() - begin
        waited[engine] = told[0] - begin
        found[engine] = {report.name: report for report in reports}
        good = [report for report in reports if report.error is None]
        rows = sum(report.rows for report in good)
        print(f"  {engine:6} {seconds[engine]:7.1f} s  {len(good)} of {len(jobs)} instruments, {rows} base rows, "
              f"{rows / seconds[engine] / 1e3:.0f} k rows/s, largest worker "
              f"{max(r.peak_bytes for r in good) / 1e9:.2f} GB, first block after {waited[engine]:.1f} s")
    for line in failures(found["ray"].values()):
        print(f"  refused  {line}")
    for report in found["local"].values():
        for note in report.notes:
            print(f"  noticed  {report.name}: {note}")
    differing = [job.name for job in jobs if content(out / "local" / job.name) != content(out / "ray" / job.name)]
    work = {engine: seconds[engine] - waited[engine] for engine in seconds}
    print(f"  ray is {seconds['local'] / seconds['ray']:.2f} x as fast as local, "
          f"{work['local'] / work['ray']:.2f} x from the first block on; "
          f"{len(good) - len(differing)} of {len(good)} results are equal to the bit")
    return [f"{what}: {name} differs between the engines" for name in differing]


def _engine(engine: str, jobs: Sequence[FeatureJob], say: Say) -> list[BlocksReport]:
    if engine == "ray":
        from training.ray_features import run

        return run(jobs, say)
    return run_jobs(jobs, engine, say)


def content(folder: Path) -> dict[str, str]:
    """Digest of every file of a partitioned table but the lock."""
    names = sorted(path for path in folder.iterdir() if path.name != ".lock") if folder.is_dir() else []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("--step="):
        result = STEPS[sys.argv[1].removeprefix("--step=")](*sys.argv[2:])
        print(json.dumps({**result, "bytes": peak_bytes(), "cpu_s": time.process_time()}))
        sys.exit(0)
    sys.exit(main())

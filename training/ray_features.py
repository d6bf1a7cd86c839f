"""The engine `ray`: features of many instruments with Ray Data, as a stream.

One pipeline whose rows are jobs. A task works through one job's blocks in order (`iter_blocks`: each continues
from the state that the one before left on disk) and yields a record for each, which streams to the driver at once;
instruments run in parallel, one CPU each. No bar and no feature passes through Ray's object store: sources are
read and blocks written where the task runs, so on several nodes both must lie on storage that all of them see.

A task whose worker dies is run again by Ray and continues after the job's last complete block. So does the next
run after a killed driver.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from algospace.errors import ConfigError
from algospace.features.blocks import Block, BlocksReport, FeatureJob
from algospace.features.engines import Say, failed, guarded
from training.ray_session import ray_session

CPUS_VARIABLE = "ALGOSPACE_RAY_CPUS"
_CPUS = 2
_ATTEMPTS = 4  # how often a job may lose its worker, less one
_BLOCK, _REPORT, _UNREADABLE = "block", "report", "unreadable"


def run(jobs: Sequence[FeatureJob], say: Say) -> list[BlocksReport]:
    """Do the jobs on the cluster that RAY_ADDRESS names, or on a local one that ends with the run.

    A local cluster has ALGOSPACE_RAY_CPUS (2) processors.
    """
    if not jobs:
        return []
    with ray_session(_local_cpus()), _streaming(len(jobs)):
        return _run(list(jobs), say)


def _run(jobs: list[FeatureJob], say: Say) -> list[BlocksReport]:
    import ray.data

    packed: list[bytes] = []
    for job in jobs:
        try:
            packed.append(ray.cloudpickle.dumps(job))
        except Exception as error:
            raise ConfigError(f"{job.name}: its job cannot be sent to a worker ({_line(error)}); load own "
                              f"indicators with load_indicator, or define them in a module") from error
    rows = ray.data.from_items([{"job": number} for number in range(len(jobs))], override_num_blocks=len(jobs))
    with warnings.catch_warnings():
        # Ray 2.60 asks for named parameters but has none for this one, and would else try for ever
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        records = rows.flat_map(partial(_work, packed), num_cpus=1, max_retries=_ATTEMPTS - 1)
    reports: dict[int, BlocksReport] = {}
    seen = [0] * len(jobs)
    # a record is a block of Ray's, and is passed on as soon as it exists
    for batch in records.iter_batches(batch_size=None, prefetch_batches=0):
        for number, kind, text in zip(batch["job"], batch["kind"], batch["record"], strict=True):
            values = json.loads(text)
            if kind == _REPORT:
                reports[int(number)] = BlocksReport(**{**values, "notes": tuple(values["notes"])})
            elif kind == _UNREADABLE:
                reports[int(number)] = failed(jobs[number], values)
            elif values["number"] > seen[number]:  # a task that is run again tells of its first blocks again
                seen[number] = values["number"]
                say(Block(**values))
    lost = f"its worker died {_ATTEMPTS} times (killed, or out of memory); its blocks are kept, run it again"
    return [reports.get(number) or failed(job, lost) for number, job in enumerate(jobs)]


def _work(packed: list[bytes], row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """On a worker: one job, block by block, and its report.

    The job is unpacked here, not by Ray, whose failure to do so would look like a dead worker.
    """
    number = int(row["job"])
    try:
        job: FeatureJob = pickle.loads(packed[number])
    except Exception as error:  # noqa: BLE001  whatever an own indicator's file does when it is loaded
        reason = f"a worker cannot load the job ({_line(error)}); install there what its indicators import"
        yield {"job": number, "kind": _UNREADABLE, "record": json.dumps(reason)}
        return
    report = yield from _records(number, job)
    yield {"job": number, "kind": _REPORT, "record": json.dumps(asdict(report))}


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _records(number: int, job: FeatureJob) -> Generator[dict[str, Any], None, BlocksReport]:
    steps = guarded(job)
    while True:
        try:
            block = next(steps)
        except StopIteration as done:
            report: BlocksReport = done.value
            return report
        yield {"job": number, "kind": _BLOCK, "record": json.dumps(block._asdict())}


def _local_cpus() -> int:
    text = os.environ.get(CPUS_VARIABLE, str(_CPUS))
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{CPUS_VARIABLE}={text}: give the number of processors of the local cluster, 1 or more")
    return int(text)


@contextmanager
def _streaming(jobs: int) -> Iterator[None]:
    """Ray Data's settings for the block: a record is passed on when it is made, not when megabytes of them are; a
    task that lost all its attempts is left out, not the end of the others; quiet."""
    from ray.data import DataContext

    context = DataContext.get_current()
    wanted = {"target_max_block_size": 1, "target_min_block_size": 0, "max_errored_blocks": jobs,
              "enable_progress_bars": False}
    before = {name: getattr(context, name) for name in wanted}
    # Ray Data would print a plan and the traceback of each lost worker; the reports say it in one line
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)

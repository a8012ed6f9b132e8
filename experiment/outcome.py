"""Outcome of a run: a record, an exit status, one line."""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiment.sweeps.jobs import OUTCOME
from flexround.utils.packages import missing_package

log = logging.getLogger("run")


FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def outcome() -> Iterator[None]:
    """End a job: one line for what the user can mend, and never the end of a whole sweep.

    A job of a sweep leaves its error in its output folder, where the sweep's end finds it.
    """
    try:
        yield
    except ValueError as error:
        _end(str(error))
    except ModuleNotFoundError as error:
        _end(missing_package(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            _end(
                f"{error.strerror}: nothing recorded is lost; make room, or give another "
                "results_dir=, and run the same command again"
            )
            return
        if _is_shortage(error):
            _end("out of memory; lower task.eval_batch_size, or give offload=true")
            return
        if not _in_sweep():
            raise
        log.exception("the job failed")
        _end(f"{type(error).__name__}: {error}")


def _is_shortage(error: Exception) -> bool:
    from flexround.utils.memory import is_shortage  # torch is loaded by then

    return is_shortage(error)


def _end(error: str) -> None:
    error = " ".join(error.split())
    if not _in_sweep():
        sys.exit(f"error: {error}")
    log.error("error: %s", error)
    write_outcome(error=error)


def write_outcome(**facts: str) -> None:
    """Leave facts about this job in its output folder, for the sweep's end to read."""
    if _in_sweep():
        path = Path(HydraConfig.get().runtime.output_dir, OUTCOME)
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | facts))


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN

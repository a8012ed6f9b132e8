"""Outcome of a run: a record, an exit status, one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiment.errors import PLACES
from experiment.sweeps.jobs import OUTCOME, facts_in, write_facts
from flexround.utils.arguments import shown
from flexround.utils.file_errors import number_of, told
from flexround.utils.leaving import faults
from flexround.utils.packages import missing_package

log = logging.getLogger("run")


# Output folders that this process has begun to write facts to; what is in others is of an earlier
# attempt.
_begun: set[Path] = set()


@contextmanager
def outcome() -> Iterator[None]:
    """End a job: one line for what the user can mend, and never the end of a whole sweep.

    A job of a sweep leaves its error in its output folder, where the sweep's end finds it.
    """
    try:
        with faults():
            yield
    except ValueError as error:
        _end(str(error))
    except ModuleNotFoundError as error:
        _end(missing_package(error))
    except Exception as error:
        if number_of(error) is not None:
            _end(f"{told(error)} ({PLACES})")
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
    error = shown(" ".join(error.split()))
    if not _in_sweep():
        sys.exit(f"error: {error}")
    log.error("error: %s", error)
    write_outcome(error=error)


def write_outcome(**facts: str) -> None:
    """Leave facts about this job in its output folder, for the sweep's end to read.

    Where they can't be written the run is worth more than they are.
    """
    if not _in_sweep():
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    before = facts_in(folder) if folder in _begun else {}
    try:
        write_facts(folder, before | facts)
    except OSError as error:
        log.warning("%s is not written: %s", folder / OUTCOME, error.strerror)
    _begun.add(folder)


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN

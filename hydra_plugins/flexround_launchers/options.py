"""Options of conf/hydra/launcher/slurm.yaml in submitit's words."""

from __future__ import annotations

import re
import shlex
from typing import Any

from experiment import ROOT
from experiment.sweeps import slurm_queue


def parameters(options: dict[str, Any]) -> dict[str, Any]:
    """Return what submitit's executor takes."""
    gpus = options["gpus"]
    if gpus is None:
        has_gpus = slurm_queue.partitions()
        asked = options["partition"] or next(iter(has_gpus), "")  # sbatch takes several by commas
        gpus = int(any(has_gpus.get(name, False) for name in asked.split(",")))
    optional = {
        "slurm_partition": options["partition"],
        "slurm_account": options["account"],
        "gpus_per_node": gpus or None,
        "mem_gb": options["memory"],
    }
    given = {key: value for key, value in optional.items() if value is not None}
    return given | {
        "name": "flexround",
        "timeout_min": minutes(options["time"]),
        "cpus_per_task": options["cpus"],
        "stderr_to_stdout": True,
        "slurm_array_parallelism": options["parallel"],
        "slurm_signal_delay_s": options["warning"],
        # A preempted run is queued again, also where the cluster's default is another.
        "slurm_additional_parameters": {"requeue": True, **options["sbatch"]},
        "slurm_setup": [
            # The node runs this checkout, from wherever the sweep was launched.
            f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
            "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
            # srun has not inherited it since SLURM 22.05.
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
            *options["setup"],
        ],
    }


# The least that a number may be.
LEAST = {"cpus": 1, "parallel": 1, "memory": 0, "gpus": 0, "restarts": 0, "warning": 0}


def check_options(options: dict[str, Any]) -> None:
    """Look at the numbers and the times.

    Raises:
        ValueError: when one of them is none, or leaves no time to work.
    """
    for name, least in LEAST.items():
        value = options[name]
        if value is not None and value < least:
            raise ValueError(f"hydra.launcher.{name}={value}: give {least} or more")
    limit, warning = 60 * minutes(options["time"]), options["warning"]
    if warning >= limit:
        raise ValueError(
            f"hydra.launcher.warning={warning} seconds leave nothing of "
            f"hydra.launcher.time={options['time']} minutes"
        )


def minutes(time: int | str) -> int:
    """Return a time limit in minutes: 90, "1:30:00" (hours), "1-12" or "1-12:30:00" (days).

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time))
    if match is None:
        raise ValueError(
            f"hydra.launcher.time={time}: give minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS"
        )
    days, first, second, seconds = match.groups()
    if days is not None:
        return int(days) * 1440 + int(first) * 60 + int(second or 0)
    return int(first) * 60 + int(second) if seconds is not None else int(first)

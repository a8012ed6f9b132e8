"""Plan of a sweep: what it would run, what of it is done, what it needs, how long it may take."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig

from experiment import ROOT
from experiment.checks import check_choices
from experiment.composer import Choices, Composer, parsed_once
from experiment.conditions import changes, conditions
from experiment.config import composed
from experiment.finetuned import uses_finetuned
from experiment.identity import identity_of, pin, plain, run_id
from experiment.options import first_sentence
from experiment.sweeps.jobs import jobs_of, names_of, search_path, sweep_overrides
from experiment.sweeps.search_space import trials_of
from results.records.record import Record
from results.records.store import Store
from results.tables.differing_defaults import MethodRun, conditions_of, differing_defaults
from tasks.language.hub import ID, split_revision
from tasks.package_files import path_of

EXPERIMENTS = ROOT / "conf" / "experiment"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its choices, options and name, and the record that stands for it.

    options are its configuration as plain values; settings are what its name is made of; refused
    is what run.py would say of it instead of running it, as far as that needs no heavy import.
    """

    model: str
    task: str
    quant: str
    options: dict[str, Any]
    settings: dict[str, Any]
    run_id: str
    record: Record | None
    refused: str | None


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of the sweep that overrides ask for.

    Raises:
        ValueError: when they do not compose, are no sweep that Hydra can run, or a search.
    """
    return jobs_of(sweep_overrides(_sweep(overrides)))


def _sweep(overrides: Sequence[str]) -> DictConfig:
    """Return Hydra's part of the whole sweep's configuration; raise as jobs does."""
    hydra: DictConfig = composed(overrides, RunMode.MULTIRUN).hydra
    if (count := trials_of(hydra)) is not None:
        raise ValueError(
            f"a search proposes its runs as it goes, {count} here; leave hydra/sweeper= out to see "
            "what they have in common"
        )
    return hydra


def plan(overrides: Sequence[str]) -> list[PlannedRun]:
    """Return the runs of a sweep, each with its record."""
    hydra = _sweep(overrides)
    sweep, more = sweep_overrides(hydra), search_path(hydra.overrides.hydra)
    return planned([[*job, *more] for job in jobs_of(sweep)], sweep)


def planned(asked: Sequence[Sequence[str]], sweep: Sequence[str]) -> list[PlannedRun]:
    """Return the runs of jobs, by the overrides of each, of a sweep with these overrides."""
    found = []
    with parsed_once():
        for own, (cfg, choices) in zip(asked, Composer().each(asked), strict=True):
            found.append(_planned(cfg, choices, _refusal(cfg, choices, own, sweep)))
    return found


def _refusal(
    cfg: DictConfig, choices: Choices, own: Sequence[str], sweep: Sequence[str]
) -> str | None:
    try:
        check_choices(cfg, choices, own, sweep)
    except ValueError as error:
        return str(error)
    return None


def _planned(cfg: DictConfig, choices: Choices, refused: str | None) -> PlannedRun:
    model, task, quant = names_of(cfg, choices)
    pin(cfg)
    options = plain(cfg)
    settings = identity_of(copy.deepcopy(options))
    name = run_id(settings)
    record = None if cfg.rerun else Store(cfg.results_dir).peek(name)
    if record is not None and record.status == "failed":
        changed = record.conditions and changes(record.conditions, conditions(cfg))
        if cfg.retry_failed or changed:
            record = None  # it is tried again
    return PlannedRun(model, task, quant, options, settings, name, record, refused)


EMBEDDED = ("scattered_digits", "digits", "python_docs", "python_topics")


def needs(run: PlannedRun) -> Iterator[tuple[str, bool | None]]:
    """Yield what a run reads from outside and whether it is there; None where only a try tells."""
    options = run.options
    model, checkpoint = options["model"], options["checkpoint"]
    data, folder = options["data_dir"], options["calibration_dir"]
    if run.task == "imagenet":
        given = options["imagenet_dir"]
        there = bool(given) and (path_of(given) / "val").is_dir()
        yield "imagenet_dir=" + (given or "PATH"), there
    elif data is not None:
        yield f"data_dir={data}", _is_there(data, options["task"])
    elif run.task not in EMBEDDED:
        yield f"the data of {run.task} from its hub, or data_dir=", None
    drawn = conditions_of(run.settings)["calibration"]
    if drawn not in ("own", "python_docs", "text_files"):
        hub = f"{drawn} from its hub, or calibration_dir="
        yield (
            f"calibration_dir={folder}" if folder else hub,
            path_of(folder).exists() if folder else None,
        )
    source = model.get("source", f"{run.model} of {model.get('library')}")
    if uses_finetuned(options):
        made = Path(options["checkpoints_dir"], run.task, run.model)
        command = f"python finetune.py model={run.model} task={run.task}"
        yield f"{made}, made by {command}", made.is_dir()
    elif checkpoint is not None:
        yield f"checkpoint {checkpoint}", _is_network(checkpoint, "source" in model)
    elif not source.startswith(("tiny:", "package:")):
        local = _is_network(source, True) if "source" in model else None
        if local is not None:
            yield f"model.source={source}", local
        elif run.task not in EMBEDDED:
            yield f"the weights {source} from their hub, or checkpoint=", None


def _is_there(data: str, task: dict[str, Any]) -> bool:
    """Return whether data is what the task takes: of own texts also a file, else a folder."""
    corpus = str((task.get("corpus") or {}).get("_target_"))
    return path_of(data).is_dir() or (corpus.endswith(".TextFiles") and path_of(data).is_file())


def _is_network(checkpoint: str, on_hub: bool) -> bool | None:
    """Return whether a network is there; None where it may be a name, or an id of the hub."""
    try:
        if path_of(checkpoint).exists():
            return True
    except ValueError:  # of a package that is not installed
        return False
    named = "/" not in checkpoint or (on_hub and ID.fullmatch(split_revision(checkpoint)[0]))
    return None if named else False


def report(overrides: Sequence[str]) -> str:
    """Return the plan in words."""
    every = plan(overrides)
    runs = [run for run in every if run.refused is None]
    refusals = Counter(run.refused for run in every if run.refused is not None)
    states = Counter("to do" if r.record is None else r.record.status for r in runs)
    told = ", ".join(f"{states[s]} {s}" for s in ("ok", "failed", "to do") if states[s])
    if refusals:
        told = ", ".join([*([told] if told else []), f"{refusals.total()} refused"])
    lines = [f"{len(every)} runs: {told}".replace(" ok", " done")]
    lines += [f"  {count:4} refused: {reason}" for reason, count in refusals.items()]
    same = len(runs) - len({run.run_id for run in runs})
    if same:
        lines.append(f"  {same} of them have another one's configuration, which is computed once")
    pairs = Counter((r.model, r.task) for r in runs)
    lines += [f"  {count:4} of {model} on {task}" for (model, task), count in pairs.items()]
    lines += differing_defaults(MethodRun(r.model, r.task, r.quant, r.settings) for r in runs)
    wanted = {what: there for run in runs for what, there in needs(run)}
    if wanted:
        lines.append("needs")
        words = {True: "there", False: "MISSING", None: "not looked for"}
        lines += [f"  {words[there]:15}{what}" for what, there in wanted.items()]
    lines.append(_time(runs))
    return "\n".join(lines)


def _time(runs: Sequence[PlannedRun]) -> str:
    """Return how long what is not done may take, from the records so far."""
    left = list({run.run_id: run for run in runs if run.record is None}.values())
    if not runs:
        return "time: none of them can be run"
    if not left:
        return "time: nothing is left to do"
    known: dict[tuple[str, str, str], list[float]] = {}
    for record in Store(runs[0].options["results_dir"]).load(blocks=False):
        if record.status == "ok":
            known.setdefault((record.model, record.task, record.quant), []).append(record.seconds)
    told = [known.get((r.model, r.task, r.quant)) for r in left]
    sure = [fmean(seconds) for seconds in told if seconds]
    if not sure:
        return f"time: no record of a run like these {len(left)} yet"
    more = f"; nothing is known of {len(left) - len(sure)}" if len(sure) < len(left) else ""
    return f"time: about {sum(sure) / 60:.0f} minutes for {len(sure)} runs, one at a time{more}"


def experiments() -> str:
    """Return all experiments with what they are and how many runs they have."""
    lines = []
    for path in sorted(EXPERIMENTS.rglob("*.yaml")):
        name = path.relative_to(EXPERIMENTS).with_suffix("").as_posix()
        count = len(jobs([f"experiment={name}"]))
        lines.append(f"{name:18}{count:5} runs  {first_sentence(path)}")
    return "\n".join(lines)

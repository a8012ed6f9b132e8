"""Originals of a run's integers: the full-precision layers as its quantization met them.

A record says how its run was composed and an artifact has what it found, neither what was there
before. That network is built again: BatchNorm folded, equalized and transformed as it was, and held
to the digest that the record has of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig
from torch import Tensor, nn

from experiment.artifacts.provenance import is_of
from experiment.artifacts.stated_overrides import check_given, composable
from experiment.build import build, build_grid, build_loop, check_plugins, validate
from experiment.config import composed
from experiment.device import device_of
from experiment.full_precision import digest_of_model
from experiment.resources import activations_of
from experiment.threads import running_on
from flexround.artifact.artifact import Artifact
from flexround.artifact.file_format import read
from flexround.models.base import ModelAdapter
from flexround.reconstruction.samples import first_samples
from flexround.structure import output_first
from flexround.transforms.base import Calibration, apply
from results.records.record import Record
from results.records.store import Store

MOST_NAMES = 5


def run_called(store: Store, name: str) -> Record:
    """Return the record of the run whose id, or a former one, begins with name.

    Raises:
        ValueError: when there is none, there are several, or it has failed.
    """
    records = store.load(blocks=False)
    if not records:
        raise ValueError(f"no records in {store.root}; python run.py with save=true writes them")
    found = [r for r in records if any(i.startswith(name) for i in (r.run_id, *r.former_ids))]
    if len(found) != 1:
        what = ", ".join(record.run_id for record in (found or records)[-MOST_NAMES:])
        if found:
            raise ValueError(f"--run {name}: {len(found)} runs begin so ({what}); give more of it")
        raise ValueError(
            f"--run {name}: none of the {len(records)} runs in {store.root} begins so; the latest "
            f"are {what}"
        )
    (record,) = found
    if record.status != "ok":
        raise ValueError(f"--run {name}: {record.run_id} failed: {record.error}")
    return record


def integers_of(store: Store, record: Record) -> Artifact:
    """Return the artifact of record's run.

    Raises:
        ValueError: when it has left none, with the command that makes it; when it is damaged.
    """
    path = store.artifact(record.run_id)
    if not is_of(path, record):
        place = QuotedString(str(store.root), Quote.double).with_quotes()
        line = record.command("save=true", "rerun=true", f"results_dir={place}")
        way = f"this makes it, and the record anew: {line}"
        if line is None:
            way = "its record does not say its command; run it again with save=true rerun=true"
        raise ValueError(f"run {record.run_id} has no artifact, which holds its integers; {way}")
    return read(path)


def weights_of(
    record: Record, names: Sequence[str], overrides: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return the full-precision weights [out, in, *kernel] that record's run met in layers names.

    overrides follow those of the run, such as data_dir=PATH on another machine.

    Raises:
        ValueError: when the record does not compose a run any more, or its network, or what a
            transform makes of it, is another one by now.
    """
    where = f"run {record.run_id}"
    if record.overrides is None:
        raise ValueError(f"{where}: its record is from before records kept their overrides")
    try:
        stated = composable(record.overrides, overrides, places=True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    cfg = composed([*stated, *overrides])
    check_given(overrides, record.overrides, places=True)  # now that they are known to be options
    check_plugins(cfg.plugins, overrides)
    validate(cfg)
    with running_on(record.threads or torch.get_num_threads()):
        adapter = _network(cfg, record)
    layers = adapter.layers()
    weights = {name: cast(nn.Parameter, layers[name].module.weight).detach() for name in names}
    return {n: output_first(layers[n].module, w).cpu().clone() for n, w in weights.items()}


def _network(cfg: DictConfig, record: Record) -> ModelAdapter:
    task, model = build(cfg.task, cfg.plugins), build(cfg.model, cfg.plugins)
    adapter: ModelAdapter = model.adapter(task, cfg.checkpoint, device_of(cfg.device))
    if record.network not in (None, digest_of_model(adapter.model, adapter.state())):
        raise ValueError(
            f"the network that run {record.run_id} quantized is another one than its command makes "
            "now: other weights, device or versions; run it again with save=true rerun=true"
        )
    transform = build(cfg.transform, cfg.plugins)
    if transform is not None:  # it may look at the calibration set, the grid and each layer's bits
        adapter.assign_bits(record.bits_per_layer)
        loop = build_loop(cfg)
        calibration = task.calibration(cfg.num_samples, cfg.seed)
        seen = Calibration(
            first_samples(adapter, calibration, cfg.num_samples - loop.held_out),
            loop.batch_size,
            build_grid(cfg),
            activations_of(cfg),
            torch.Generator().manual_seed(cfg.seed),
        )
        if not _same(apply(transform, adapter, seen), record.transform):
            raise ValueError(
                f"transform={transform.name} finds something else now than run {record.run_id} has "
                "recorded: other calibration data, device or versions; run it again with save=true "
                "rerun=true"
            )
    return adapter


def _same(found: Any, recorded: Any) -> bool:
    """Return whether two values of JSON are one, real numbers to a thousandth."""
    if isinstance(found, Mapping) and isinstance(recorded, Mapping):
        # The one is rounding, the other what another run had found.
        names = {*found, *recorded} - {"change_of_logits", "blocks_reused"}
        return all(n in found and n in recorded and _same(found[n], recorded[n]) for n in names)
    if isinstance(found, list | tuple) and isinstance(recorded, list | tuple):
        return len(found) == len(recorded) and all(map(_same, found, recorded))
    if isinstance(found, float) and isinstance(recorded, float):
        return math.isclose(found, recorded, rel_tol=1e-3)
    return bool(found == recorded)

"""Artifact of a run: the folder with its integers, what rebuilds the network, and a card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from experiment.artifacts.model_card import model_card
from experiment.artifacts.stated_overrides import shareable
from flexround.artifact.artifact import take
from flexround.artifact.file_format import write
from flexround.artifact.header import FILE
from flexround.grid import QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.utils.atomic_files import written_folder
from results.records.record import Record
from tasks.base import Task

log = logging.getLogger(__name__)


def save(
    folder: Path,
    task: Task,
    adapter: ModelAdapter,
    integers: Mapping[str, QuantizedTensor],
    source: str,
    record: Record,
) -> Path:
    """Write the artifact to folder, whole or not at all, and return folder.

    source is the digest of the full-precision network as quantization met it. An artifact is for
    others: the paths of this machine stay in its record.
    """
    record = replace(record, overrides=shareable(record.overrides or []), places={})
    facts = {
        "record": {name: value for name, value in record.to_json().items() if name != "blocks"},
        "source": source,
        "threads": torch.get_num_threads(),
    }
    artifact = take(adapter, integers, facts)
    with written_folder(folder) as part:
        write(artifact, part / FILE)
        task.write_architecture(adapter.model, part)
        (part / "README.md").write_text(model_card(artifact, record), encoding="utf-8")
    log.info("artifact %s", folder)
    return folder

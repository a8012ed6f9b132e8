"""Networks that fine-tuning has left: where they lie, and what they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import from_json

from experiment.content import Contents
from flexround.utils.file_errors import read_bytes
from tasks.package_files import path_of

FINETUNED = "finetuned"
# What a record has of what fine-tuning has noted: no place, and nothing of the machine.
NOTED = ("task", "model", "source_digest", "model_source_digest", "seed", "recipe", "rows")


def network_digest(source: str, contents: Contents) -> str:
    """Return the digest of the file or folder that source names; source where it names none."""
    try:
        path = path_of(source)
    except ValueError:  # a package that is not installed
        return source
    return contents.network(path) or source


def uses_finetuned(settings: dict[str, Any]) -> bool:
    """Return whether the network is what fine-tuning has left for the task and model."""
    checkpoint = settings["checkpoint"]
    return checkpoint == FINETUNED or (bool(settings["finetuned"]) and checkpoint is None)


def finetuned_folder(settings: dict[str, Any]) -> Path:
    """Return where the fine-tuned network lies."""
    return Path(settings["checkpoints_dir"], settings["task"]["name"], settings["model"]["name"])


def finetuning_facts(folder: Path) -> dict[str, Any]:
    """Return what fine-tuning has noted of the network in folder, nothing where there is none.

    Raises:
        ValueError: names the file where it is damaged.
    """
    file = folder / "finetune.json"
    if not file.is_file():
        return {}
    try:
        facts = from_json(read_bytes(file))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{file} is damaged; fine-tune again (finetune.py with rerun=true)")
    return facts


def finetuning_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what fine-tuning has noted of a run's network, {} of a network of another origin.

    settings are the run's configuration as plain values, with its places.

    Raises:
        ValueError: names the file where it is damaged.
    """
    if uses_finetuned(settings):
        folder = finetuned_folder(settings)
    else:
        source = settings["checkpoint"] or settings["model"].get("source")
        if source is None:
            return {}
        try:
            folder = path_of(source)
        except ValueError:  # a package that is not installed: the task tells that
            return {}
    facts = finetuning_facts(folder)
    return {name: facts[name] for name in NOTED if name in facts}


def check_origin(settings: dict[str, Any], contents: Contents) -> None:
    """Check that the fine-tuned network was made for the model.source of settings.

    Raises:
        ValueError: names both sources and the ways out.
    """
    folder = finetuned_folder(settings)
    facts, asked = finetuning_facts(folder), settings["model"]["source"]
    if not facts:
        return
    if "model_source" in facts:
        made_from, same = facts["model_source"], network_digest(asked, contents)
        known = facts.get("model_source_digest") == same
    else:  # of before digests were kept: there are only words
        made_from = facts.get("source")
        known = asked.partition("@")[0] == made_from
    if made_from == asked and not known:
        raise ValueError(
            f"model.source={asked} does not hold, or not here, what {folder} was fine-tuned from; "
            "bring it back, give another checkpoints_dir, or fine-tune again (finetune.py with "
            "rerun=true)"
        )
    if not known:
        raise ValueError(
            f"model.source={asked} is another network than {made_from}, from which {folder} was "
            "fine-tuned; leave model.source out, give another checkpoints_dir, or fine-tune again "
            "(finetune.py with rerun=true)"
        )

"""Networks that fine-tuning has left: where they lie, and what they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiment.content import Contents
from tasks.package_files import path_of

FINETUNED = "finetuned"


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


def check_origin(settings: dict[str, Any], contents: Contents) -> None:
    """Check that the fine-tuned network was made for the model.source of settings.

    Raises:
        ValueError: names both sources and the ways out.
    """
    file = finetuned_folder(settings) / "finetune.json"
    if not file.is_file():
        return
    facts, asked = json.loads(file.read_text()), settings["model"]["source"]
    if "model_source" in facts:
        made_from, same = facts["model_source"], network_digest(asked, contents)
        known = facts["model_source_digest"] == same
    else:  # of before digests were kept: there are only words
        made_from = facts["source"]
        known = asked.partition("@")[0] == made_from
    if not known:
        raise ValueError(
            f"model.source={asked} is another network than {made_from}, from which {file.parent} "
            "was fine-tuned; leave model.source out, give another checkpoints_dir, or fine-tune "
            "again (finetune.py with rerun=true)"
        )

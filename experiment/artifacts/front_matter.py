"""Front matter of a model card: what the Hugging Face hub reads of it, as YAML.

The fields are the hub's (huggingface.co/docs/hub/model-cards): license, base_model, tags, metrics,
and the numbers as a model-index.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from results.records.record import Record
from tasks.language.hub import ID, split_revision

PAPER = "arxiv:2306.00317"
DIGEST = re.compile(r"[0-9a-f]{16,64}")  # of a local network, in the place of its id
# The hub's names of what a network does, by the class of its task; a causal model's is the first.
PIPELINES = {
    "LanguageModeling": "text-generation",
    "ZeroShot": "text-generation",
    "WebNLG": "text-generation",
    "Classification": "text-classification",
    "Squad": "question-answering",
}
IMAGES = "image-classification"
# Networks that this program has trained itself, on data of the standard library or scikit-learn.
OWN = "apache-2.0"
TRAINED_HERE = ("Digits", "ScatteredDigits")  # classes of tasks.vision.trained.TrainedTask
METRICS = {"top1": "accuracy", "matthews": "matthews_correlation"}  # as the hub calls them


def front_matter(record: Record) -> str:
    """Return the block between two lines of dashes, with its end of line."""
    text = yaml.safe_dump(fields(record), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"


def fields(record: Record) -> dict[str, Any]:
    """Return what the block holds."""
    base = base_model(record)
    found: dict[str, Any] = _license(record, base)
    if base is not None:
        found |= {"base_model": base, "base_model_relation": "quantized"}
    pipeline = _pipeline(record)
    found |= {
        "library_name": "flexround",
        "pipeline_tag": pipeline,
        "tags": ["quantized", "post-training-quantization", "flexround", *_tags(record)],
        "metrics": list(dict.fromkeys(METRICS.get(name, name) for name in record.metrics)),
        "model-index": [_results(record, pipeline)],
    }
    return found


def base_model(record: Record) -> str | None:
    """Return the hub's id of the full-precision network, None where it is none of the hub's."""
    source = record.settings.get("checkpoint") or record.settings["model"].get("source")
    if not isinstance(source, str):
        return None
    name, _ = split_revision(source)
    known = ID.fullmatch(name) and not DIGEST.fullmatch(name) and not name.startswith("tiny:")
    return name if known else None


def _license(record: Record, base: str | None) -> dict[str, Any]:
    """Return whose license holds: the full-precision network's, which its own page states."""
    source = str(record.settings["model"].get("source", ""))
    own = source.startswith("tiny:") or record.settings["task"].get("_target_") in TRAINED_HERE
    if own and not record.settings.get("checkpoint"):
        return {"license": OWN}
    found = {"license": "other", "license_name": "that-of-the-full-precision-network"}
    if base is not None:
        found["license_link"] = f"https://huggingface.co/{base}"
    return found


def _vision(record: Record) -> dict[str, Any]:
    model: dict[str, Any] = record.settings["model"]
    return model if model.get("_target_") == "VisionModel" else {}


def _pipeline(record: Record) -> str:
    if _vision(record):
        return IMAGES
    task = str(record.settings["task"].get("_target_"))
    return PIPELINES.get(task, "text-generation")


def _tags(record: Record) -> list[str]:
    act_bits = record.settings.get("act_bits") or (32 if _vision(record) else 16)
    return [record.quant, f"{record.bits}-bit", f"w{record.bits}a{act_bits}", PAPER]


def _results(record: Record, pipeline: str) -> dict[str, Any]:
    """Return the numbers of the run, one task's, by the metric's name here and on the hub."""
    corpus = record.settings["task"].get("corpus") or {}
    data = record.settings["task"].get("path") or corpus.get("path") or record.task
    metrics = [
        {"type": METRICS.get(name, name), "name": name, "value": value}
        for name, value in record.metrics.items()
    ]
    return {
        "name": f"{record.model} {record.bits} bit by {record.quant}",
        "results": [
            {
                "task": {"type": pipeline},
                "dataset": {"name": record.task, "type": str(data)},
                "metrics": metrics,
            }
        ],
    }

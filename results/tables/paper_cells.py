"""Which run is of which cell of the FlexRound paper, and what it has fewer or more of than that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.records.given import by_hand
from results.records.off import TARGET, turned_on
from results.records.record import Record
from results.records.selection import fact
from results.tables.published_numbers import Cell

# How the paper measures perplexity.
PROTOCOL = {"name": "run_clm", "split": "validation", "window": 1024, "max_windows": None}
TRAINED = frozenset({"finetuned", "lora"})  # words for a network trained on the task before
ALWAYS_TRAINED = ("glue/", "squad", "webnlg")  # which mean nothing before
FINETUNED = "finetuned"  # what checkpoint= calls the network that finetune.py has made
UNEVALUATED = ".unevaluated"  # behind the name of one that it has not measured yet
TUNED = "tuned_lr"  # the word for a learning rate of each task's own
ASIDE = {"stream_dtype"}  # of what a run can turn on, what is no part of its method
OF_PTB = {"task.corpus.joined_by"}  # and what that task turns on by itself
# The two setups, as conf/recon/brecq.yaml and qdrop.yaml have them. What begins with act_ is of
# activations, and nothing where these are not quantized.
SETUPS: dict[str, dict[str, Any]] = {
    "B": {"unit": "block", "inputs": "quant", "act_steps": "after", "act_inputs": "fp"},
    "Q": {"unit": "block", "inputs": "mixed", "act_steps": "together", "quant_prob": 0.5},
}


def is_measured(record: Record, cell: Cell) -> bool:
    """Return whether record is of the cell's network in full precision, measured as it is."""
    if (record.model, record.task) != (cell.model, task_of(cell)):
        return False
    words = cell.setting.split()
    if cell.task == "imagenet":
        own, model = record.settings.get("checkpoint") is None, record.settings["model"]
        changed = [name for name in ("equalize", "absorb_biases") if model.get(name)]
        wanted = [name for name in ("equalize", "absorb_biases") if name in words]
        return own == ("torchvision" in words) and changed == wanted
    trained = bool(TRAINED.intersection(words)) or cell.task.startswith(ALWAYS_TRAINED)
    return trained_on(record) == (record.task if trained else None) and in_whole(record, PROTOCOL)


def trained_on(record: Record) -> str | None:
    """Return the task that a run's network was trained on before, as far as the record tells.

    None is a network as its authors have published it. Where the record has nothing of what
    finetune.py has noted, the place tells: a checkpoint that was given by a place or a name on the
    hub is what the model's authors have published, unless the place is one of finetune.py's,
    TASK/MODEL. A checkpoint without a place is what the task takes of finetune.py's by itself, or
    that of a record too old to tell: trained.
    """
    if "task" in record.finetuning:
        return str(record.finetuning["task"])
    if record.settings.get("checkpoint") is None:
        return None
    # An artifact's record has no places, but still says on its command line that there was one.
    place = record.places.get("checkpoint") or by_hand(record).get("checkpoint")
    if place in (None, FINETUNED) or record.task.startswith(ALWAYS_TRAINED):
        return record.task
    made = f"/{place}".rstrip("/").removesuffix(UNEVALUATED)
    return record.task if made.endswith(f"/{record.task}/{record.model}") else None


def in_whole(record: Record, protocol: dict[str, Any]) -> bool:
    """Return whether a run is measured on every item, a perplexity by protocol."""
    task = record.settings["task"]
    if task.get("protocol") is None:
        return task.get("limit") is None and task.get("max_eval") is None
    return bool({name: task["protocol"].get(name) for name in protocol} == protocol)


def added(record: Record) -> set[str]:
    """Return the options and groups that a run has turned on besides its method and its task."""
    return turned_on(record.settings) - ASIDE - (OF_PTB if record.task == "ptb" else set())


def is_run(record: Record, cell: Cell) -> bool:
    """Return whether a run of the cell's network is quantized as the cell is."""
    settings, words = record.settings, cell.setting.split()
    if record.quant != cell.method or added(record):
        return False
    scheme = settings.get("activation")
    if scheme is not None and (scheme[TARGET] != "StaticPerTensor" or scheme.get("kv_bits")):
        return False
    bits = f"W{record.bits}A{settings['act_bits']}" if scheme is not None else f"W{record.bits}"
    samples = _samples(words)
    rows = cell.model.startswith("llama")  # whose weights have a scale for each
    tried = "recon.lr" in by_hand(record)
    return (
        bits == (cell.bits if scheme is not None else cell.bits.partition("A")[0])
        and (scheme is not None or cell.bits.endswith(("A16", "A32")))
        and _is_setup(settings.get("recon") or {}, words[0], scheme is not None)
        and samples in (None, settings["num_samples"])
        and settings["symmetric"] == (cell.task == "imagenet")
        and settings["granularity"][TARGET] == ("PerChannel" if rows else "PerTensor")
        and (cell.task != "imagenet" or settings["model"].get("first_last_bits", 8) == 8)
        and (not cell.task.startswith("glue/") or tried == (TUNED in words))
    )


def _is_setup(recon: dict[str, Any], name: str, activations: bool) -> bool:
    """Return whether a loop's options are those of B or Q, as far as the record has them."""
    own = {"act_steps": "start"} | recon  # which a record leaves out
    return all(
        own.get(option, value) == value
        for option, value in SETUPS[name].items()
        if activations or not option.startswith("act_")
    )


def other_numbers(record: Record, cell: Cell) -> str:
    """Return how many samples and iterations a run of the cell has; "" where it has the preset's.

    It stays in the cell: a run on a small machine has fewer, which the table notes.
    """
    told = [
        f"{name}={own}, not {right}"
        for name, right in _numbers(cell).items()
        if (own := fact(record, name, right)) != right
    ]
    return f"ours has {', and '.join(told)}" if told else ""


def _numbers(cell: Cell) -> dict[str, int]:
    """Return how many samples and iterations experiment=paper/TABLE gives the cell's method."""
    words = cell.setting.split()
    if cell.task == "imagenet":
        samples, iters = 1024, 20000 if cell.method == "adaround" else 5000
    elif cell.task.startswith(("glue/", "squad")):
        samples, iters = 1024, 20000
    elif cell.model.startswith("llama"):
        samples, iters = 256 if "lora" in words else 512, 5000
    else:
        samples, iters = 128, 500
    return {"num_samples": _samples(words) or samples, "recon.iters": iters}


def _samples(words: Sequence[str]) -> int | None:
    """Return the number of samples that a cell's words name; None where they name none."""
    given = dict(word.split("=") for word in words if word.startswith("num_samples="))
    return int(given["num_samples"]) if given else None


def task_of(cell: Cell) -> str:
    """Return the task that measures the cell here."""
    return "five_shot" if "num_fewshot=5" in cell.setting.split() else cell.task

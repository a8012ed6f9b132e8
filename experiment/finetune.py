"""Fine-tuning of a model for a task, which `finetune.py` starts.

The network is written to checkpoints_dir/TASK/MODEL, where `run.py` looks for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiment.build import build, check_plugins, validate
from experiment.checks import check_filled, check_idle, check_values
from experiment.config import check_keys
from experiment.content import Contents
from experiment.device import device_of, processor
from experiment.environment import check_environment
from experiment.errors import PLACES
from experiment.finetuned import finetuning_facts, network_digest
from experiment.identity import pin, plain, with_digests
from experiment.job import overrides_of_sweep
from experiment.options import OF_FINETUNING
from experiment.source_code import code_of
from experiment.sweeps.jobs import as_typed
from experiment.task_checks import check_places
from flexround.utils.atomic_files import check_writable, publish, sweep, write_whole
from flexround.utils.file_errors import storage_errors
from flexround.utils.leaving import undoing
from results.records.claim import Claim
from results.records.given import below, word
from results.records.leftovers import sweep_parts
from results.records.selection import flatten

log = logging.getLogger("finetune")

# Options of a task that decide the rows of its train split.
ROWS = (
    "data", "corpus", "path", "local", "files", "max_len", "stride", "protocol.window",
    "begin_with_bos",
)  # fmt: skip
LATER = ("device_batch_size",)  # options of a recipe that older networks do not name
# What the name of a folder ends in that holds a network which is trained and not yet evaluated.
UNEVALUATED = ".unevaluated"
CODE = "code"  # what finetune.json calls the digest of the code that trained


def check_used(cfg: DictConfig) -> None:
    """Refuse options that only quantization has.

    Raises:
        ValueError: names the option.
    """
    check_keys(cfg)
    check_values(cfg)
    given = as_typed(HydraConfig.get().overrides.task)
    check_plugins(cfg.plugins, given)
    check_environment(cfg)
    for text in given:
        if text.lstrip("+~").partition("=")[0].partition(".")[0] not in OF_FINETUNING:
            raise ValueError(f"{text} does nothing in fine-tuning; leave it out")
    check_idle(cfg, given, overrides_of_sweep() or given)
    check_filled(cfg, HydraConfig.get().runtime.choices)


def check_same(folder: Path, made_of: dict[str, Any]) -> None:
    """Check that the network in folder was made of what is asked for, as far as it says.

    Raises:
        ValueError: names what differs.
    """
    there = flatten(finetuning_facts(folder))
    asked = flatten(made_of)
    # The same network elsewhere is the same; of before digests were kept there are only words.
    source = "source_digest" if "source_digest" in there else "source"
    decide = ("seed", source, "recipe", "rows")
    told = [
        f"{name}={word(value)}, not {word(asked.get(name))}" for name, value in there.items()
        if below(name, decide) and value != asked.get(name)
    ]  # fmt: skip
    if told:
        raise ValueError(
            f"{folder} was fine-tuned with {'; '.join(told)}; give rerun=true to make it again, or "
            "another checkpoints_dir="
        )


def finetune(cfg: DictConfig) -> Path:
    """Return the folder of the fine-tuned network, made now unless it is there."""
    import torch

    from experiment.threads import running_on

    with running_on(cfg.threads or torch.get_num_threads()):
        return _finetune(cfg)


def _finetune(cfg: DictConfig) -> Path:
    from flexround.models.base import check_kind

    validate(cfg)
    check_places(plain(cfg))
    pin(cfg)
    task, model, recipe = (build(cfg[name], cfg.plugins) for name in ("task", "model", "recipe"))
    if "vision" in task.kinds:
        raise ValueError("there is no fine-tuning for vision tasks; choose a language task=")
    check_kind(model.kind, task.kinds)
    folder: Path = task.finetuned_folder(model)
    sweep_parts(folder.parent)
    contents = Contents(Path(cfg.cache_dir, "digests"))
    made_of = {
        "source": cfg.checkpoint or model.source,
        "source_digest": network_digest(cfg.checkpoint or model.source, contents),
        "seed": cfg.seed,
        "recipe": {n: v for n, v in plain(cfg)["recipe"].items() if n not in LATER or v},
        "rows": _rows(cfg, contents),
        CODE: code_of(cfg),
    }
    if not cfg.rerun and _is_there(folder, made_of):
        return folder
    with _alone(folder):
        if cfg.rerun or not _is_there(folder, made_of):  # made by another one meanwhile
            _make(cfg, (task, model, recipe), folder, made_of, contents)
    return folder


def _rows(cfg: DictConfig, contents: Contents) -> dict[str, Any]:
    """Return what decides the rows that are trained on, files and folders by what they hold."""
    settings = flatten(with_digests(_of_train(plain(cfg)["task"]), contents))
    return {n: v for n, v in settings.items() if below(n, ROWS) and not n.endswith("_target_")}


def _of_train(node: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the files of the train split alone."""
    found = {key: _of_train(v) if isinstance(v, dict) else v for key, v in node.items()}
    if isinstance(files := node.get("files"), dict) and "train" in files:
        found["files"] = {"train": files["train"]}
    return found


def _is_there(folder: Path, made_of: dict[str, Any]) -> bool:
    """Return whether the fine-tuned network is there.

    Raises:
        ValueError: when what is there was made of something else.
    """
    if not (folder / "config.json").is_file():
        return False
    check_same(folder, made_of)
    log.info("already there: %s (rerun=true makes it again)", folder)
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have this process alone make the network in folder.

    Raises:
        ValueError: when another one is at it; names it.
    """
    claim = Claim(folder.with_name(f"{folder.name}.claim"))
    with undoing(claim.release):
        with storage_errors(PLACES):
            check_writable(folder.parent)  # before hours of training
            owner = claim.take()
        if owner is not None:
            raise ValueError(
                f"{owner} is fine-tuning {folder}; wait for it, or give another checkpoints_dir="
            )
        try:
            yield
        finally:
            claim.release()


def _make(
    cfg: DictConfig, parts: tuple[Any, Any, Any], folder: Path, made_of: dict[str, Any],
    contents: Contents,
) -> None:  # fmt: skip
    """Fine-tune a network and leave it in folder.

    Until it is evaluated it lies beside folder, whole, and the next command goes on from there.

    Raises:
        ValueError: as the task does; of what is trained already, it says where that is.
    """
    from flexround.models.language_adapter import LanguageAdapter

    task, model, _ = parts
    device, kept = device_of(cfg.device), folder.with_name(f"{folder.name}{UNEVALUATED}")
    if not _is_trained(kept, made_of, cfg.rerun):
        _train(cfg, parts, kept, made_of, contents)
    log.info("trained; it is kept in %s until it is evaluated", kept)
    try:
        # Read anew: the adapter changes a network in place, which is not what is to be kept.
        network = task.load(model, str(kept))
        metrics = task.evaluate(LanguageAdapter(network, task.example(), device))
    except ValueError as error:
        again = "the command again" + ", by the same code," * cfg.rerun
        raise ValueError(
            f"{error}; the trained network is whole in {kept}: give {again} to evaluate it, run.py "
            f"checkpoint={kept} to use it as it is, or delete it to train anew"
        ) from error
    facts = finetuning_facts(kept) | {"metrics": metrics}
    sweep(kept / "finetune.json")  # what one that was killed here has left would go along
    write_whole(kept / "finetune.json", json.dumps(facts, indent=2).encode())
    publish(kept, folder)
    log.info("%s: %s", folder, ", ".join(f"{k} {v:.2f}" for k, v in metrics.items()))


def _is_trained(kept: Path, made_of: dict[str, Any], rerun: bool) -> bool:
    """Return whether kept holds a network that was made of what is asked for.

    What rerun=true replaces may be of code that has been mended since.
    """
    there = finetuning_facts(kept)
    return all(there.get(n) == value for n, value in made_of.items() if rerun or n != CODE)


def _train(
    cfg: DictConfig, parts: tuple[Any, Any, Any], kept: Path, made_of: dict[str, Any],
    contents: Contents,
) -> None:  # fmt: skip
    """Fine-tune a network and leave it in kept, with all that is known before it is evaluated."""
    import torch

    from tasks.language.pretrained import save

    task, model, recipe = parts
    network = task.fresh(model, cfg.checkpoint, cfg.seed)
    rows, collator = task.training_rows(), task.collator()
    for _ in task.evaluation_data() or ():
        pass  # what it lacks is told now, not after hours of training
    network = recipe.train(network, rows, collator, cfg.seed, device_of(cfg.device))
    facts = {
        "task": task.name,
        "model": model.name,
        **made_of,
        "model_source": model.source,
        "model_source_digest": network_digest(model.source, contents),
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }
    save(network, task.tokenizer, kept, facts)

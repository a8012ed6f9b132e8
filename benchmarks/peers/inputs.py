"""Inputs that all programs share: the network in a folder, and tokens in a file."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiment.build import TARGET, build, validate
from experiment.config import composed
from flexround.utils.atomic_files import written_folder

NETWORK, TOKENS, FACTS = "network", "tokens.safetensors", "facts.json"
PIECE = 1 << 24  # bytes
PERPLEXITY = "tasks.language.perplexity.LanguageModeling"


@dataclass(frozen=True)
class Setting:
    """What is the same for all contenders.

    Attributes:
        model: a name of conf/model that is a causal language model.
        task: a name of conf/task, or None for the model's own.
        data_dir: the folder of the task's texts, or None for the hub.
        samples: sequences to calibrate on.
        tokens: of each.
        windows: to evaluate on, at most.
        window: tokens of each.
        group_size: weights that share a scale.
        batch_size: sequences of an iteration.
        threads: of torch.
    """

    model: str
    task: str | None
    data_dir: str | None
    samples: int
    tokens: int
    windows: int
    window: int
    group_size: int
    batch_size: int
    threads: int

    def compose(self, network: Path | None = None) -> list[str]:
        """Return the overrides of our configuration; network is a folder to load from."""
        found = [
            f"model={self.model}", "calibration=own", "protocol=file",
            f"protocol.window={self.window}", f"protocol.max_windows={self.windows}",
            f"num_samples={self.samples}", f"task.seq_len={self.tokens}", "device=cpu",
            "granularity=per_group", f"group_size={self.group_size}", "symmetric=false",
            f"recon.batch_size={self.batch_size}",
        ]  # fmt: skip
        found += [f"task={self.task}"] if self.task else []
        found += [f"data_dir={_quoted(self.data_dir)}"] if self.data_dir else []
        return found + ([f"model.source={_quoted(network)}"] if network else [])


def _quoted(path: object) -> str:
    """Return a path as Hydra's grammar takes it, whatever is in it."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def prepared(setting: Setting, folder: Path) -> str:
    """Write the network and the tokens into folder, once; return a digest of both.

    Raises:
        ValueError: when the model or the texts can't be had, or the model is no causal one.
    """
    facts = json.dumps({**asdict(setting), "threads": None, "group_size": None, "batch_size": None})
    if not (folder / FACTS).is_file() or (folder / FACTS).read_text() != facts:
        _write(setting, folder, facts)
    found = hashlib.sha256()
    for path in [folder / TOKENS, *sorted((folder / NETWORK).glob("*.safetensors"))]:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
    return found.hexdigest()[:16]


def _write(setting: Setting, folder: Path, facts: str) -> None:
    from safetensors.torch import save_file

    task_of = [f"task={setting.task}"] if setting.task else []
    first = composed([f"model={setting.model}", *task_of])
    if first.model.get("kind") != "causal" or first.task[TARGET] != PERPLEXITY:
        with_task = f" --task {setting.task}" if setting.task else ""
        raise ValueError(
            f"--model {setting.model}{with_task}: give a causal language model, and a task that is "
            "the perplexity of a text"
        )
    cfg = composed(setting.compose())
    if setting.data_dir and any("data_dir" in names for names in cfg.idle.values()):
        raise ValueError(f"--data-dir does nothing with task={cfg.task.name}; leave it out")
    validate(cfg)
    task, model = build(cfg.task), build(cfg.model)
    network = _plain(task.load(model, None))
    calibration = torch.cat([batch["input_ids"] for batch in task.calibration(setting.samples, 0)])
    (windows,) = task.texts()
    with written_folder(folder) as part:
        network.save_pretrained(part / NETWORK)
        task.write_architecture(network, part / NETWORK)
        tokens = {"calibration": calibration, "windows": windows}
        save_file({name: ids.contiguous() for name, ids in tokens.items()}, part / TOKENS)
        (part / FACTS).write_text(facts)


def _plain(network: Any) -> Any:
    """Return a float32 copy of network without a word of the file that it came from.

    The Hugging Face library takes one that was read from a GGUF file for quantized.
    """
    config = copy.deepcopy(network.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    plain = type(network)(config).float()
    plain.load_state_dict(network.state_dict())
    return plain

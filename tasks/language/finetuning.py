"""Recipes of fine-tuning: transformers' Trainer, and LoRA (arXiv 2106.09685) through peft."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.base import Collator, Row
from tasks.bounds import Count, NotNegative, Share, WholeNotNegative
from tasks.language.heads import heads_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of some layers; they are merged into the weights in the end.

    A classifier's head, which may just have been drawn, trains as a whole.

    Attributes:
        rank: of the updates.
        alpha: their scale is alpha / rank.
        dropout: on their inputs.
        targets: how the names of the updated layers end.
    """

    rank: Count
    alpha: Count
    dropout: Share
    targets: list[str]

    def add_to(self, network: nn.Module) -> Any:
        """Return network with updates that train, its head too where it has one, all else frozen.

        Raises:
            ValueError: when no layer below the head is called as in targets.
        """
        from peft import LoraConfig, get_peft_model

        heads = heads_of(network)
        inside = tuple(f"{name}." for name in heads)
        layers = [
            m for name, m in network.named_modules()
            if name.endswith(tuple(self.targets)) and not f"{name}.".startswith(inside)
        ]  # fmt: skip
        if not layers:
            raise ValueError(
                f"recipe.lora.targets={self.targets}: {type(network).__name__} has no such layers"
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            # transformers' Conv1D keeps its weight as [in, out].
            fan_in_fan_out=not isinstance(layers[0], nn.Linear),
            modules_to_save=heads or None,
        )
        if heads:  # Adam's second moment vanishes in half precision, and inputs are of one type
            network = network.float()
        return get_peft_model(network, config)


@dataclass(frozen=True)
class Recipe:
    """The settings of one fine-tuning.

    Attributes:
        lr: AdamW's learning rate, after the warm-up decayed linearly to 0.
        batch_size: rows a step.
        epochs: passes over the train split.
        max_steps: end after so many steps, or None.
        weight_decay: AdamW's.
        warmup_steps: steps in which the rate rises.
        label_smoothing: share of the target spread over all classes.
        lora: train low-rank updates only, or None for all weights.
        device_batch_size: rows of a step that the device is given at once; their gradients are
            added up. Dropout then draws otherwise, and where rows have a loss each, the last part
            of an epoch counts as much as a whole one. None for all of a step's rows.
    """

    lr: float
    batch_size: int
    epochs: float
    max_steps: Count | None
    weight_decay: NotNegative
    warmup_steps: WholeNotNegative
    label_smoothing: Share
    lora: LoRA | None
    device_batch_size: Count | None = None  # a task's own recipe, part of its runs' names, has none

    def __post_init__(self) -> None:
        for name in ("lr", "batch_size", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"recipe.{name}={getattr(self, name)}: give a number above 0")
        if self.device_batch_size and self.batch_size % self.device_batch_size:
            raise ValueError(
                f"recipe.device_batch_size={self.device_batch_size} does not divide "
                f"recipe.batch_size={self.batch_size}; give a number that does"
            )

    def train(
        self,
        network: nn.Module,
        rows: Sequence[Row],
        collator: Collator,
        seed: int,
        device: torch.device,
    ) -> nn.Module:
        """Return network fine-tuned on device alone, in eval mode on the CPU, LoRA merged.

        Its weights have the types of before where LoRA trains no head, else they are float32.
        """
        import accelerate  # noqa: F401  the Trainer's own error, when it is missing, is longer

        config: Any = getattr(network, "config", None)
        use_cache = getattr(config, "use_cache", None)

        # Adam's second moment vanishes in half precision; LoRA trains its own float32 weights, or
        # with a head all are float32.
        types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
        is_half = (
            self.lora is not None and not heads_of(network) and torch.float16 in types.values()
        )
        # Gradients of a mean over 100,000 tokens are below what float16 has: on a GPU the Trainer
        # scales them up, on the CPU it refuses to.
        is_scaled = is_half and device.type == "cuda"
        if self.lora is None or (is_half and not is_scaled):
            network = network.float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # LoRA's first weights, before the Trainer seeds all else
            trained: Any = network if self.lora is None else self.lora.add_to(network)
        from transformers import PrinterCallback, Trainer, TrainingArguments
        from transformers.utils.logging import disable_progress_bar

        at_once = self.device_batch_size or self.batch_size
        with tempfile.TemporaryDirectory() as scratch:
            arguments = TrainingArguments(
                output_dir=scratch,
                learning_rate=self.lr,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=self.batch_size // at_once,
                num_train_epochs=self.epochs,
                max_steps=self.max_steps or -1,
                weight_decay=self.weight_decay,
                warmup_steps=self.warmup_steps,
                label_smoothing_factor=self.label_smoothing,
                seed=seed,
                fp16=is_scaled,
                use_cpu=device.type == "cpu",
                save_strategy="no",
                logging_strategy="steps",
                logging_steps=50,
                report_to=[],
                # As all other bars are, by tqdm's own word.
                disable_tqdm=not sys.stderr.isatty() or os.environ.get("TQDM_DISABLE") == "1",
                # Rows hold what the network takes and nothing else.
                remove_unused_columns=False,
            )
            _keep_to(device, arguments)
            disable_progress_bar()
            trainer = Trainer(trained, arguments, train_dataset=list(rows), data_collator=collator)
            trainer.remove_callback(PrinterCallback)
            loss = trainer.train().training_loss
        log.info("%d rows, mean training loss %.4f", len(rows), loss)
        if self.lora is not None:
            trained = trained.merge_and_unload()
        if use_cache is not None:
            config.use_cache = use_cache  # the Trainer has set its own, which would be saved
        done: nn.Module = trained.cpu().eval()
        if is_half:  # merged and rounded once
            for name, tensor in done.state_dict(keep_vars=True).items():
                tensor.data = tensor.data.to(types[name])
        return done


def _keep_to(device: torch.device, arguments: Any) -> None:
    """Have transformers' arguments train on device alone.

    Theirs are all GPUs that it sees, each with a batch of batch_size, beginning with cuda:0.
    """
    _ = arguments.device  # settles them, which would set again what is set here
    arguments._setup_devices = device
    arguments._n_gpu = int(device.type != "cpu")
    arguments.distributed_state.device = device  # where accelerate takes it from

"""Scales learned end to end, once every unit has been learned; the codes stay as they are.

Source: EfficientQAT (arXiv 2407.11062), its second phase (E2E-QP). A unit is learned for its own
output, whatever the units behind it make of its error; here one loss reaches the scales of all.
There it is the next token's of a training set, here the divergence from the full-precision
network's next token on the calibration set (`logit_loss`), since that network is what is to be
kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flexround.activations.schemes import Activation
from flexround.attach import Transposed, bake
from flexround.calibration.activation_cache import moved, rows
from flexround.calibration.pace import pace_of
from flexround.grid import Grid, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.offloaded_adapter import OffloadedAdapter
from flexround.quantizers.adam import Adam
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.logit_loss import LogitLoss
from flexround.reconstruction.optimize import UnitOptimizer, scheduled
from flexround.reconstruction.report import Errors, Stopwatch
from flexround.reconstruction.settings import Settings
from flexround.structure import Layer, is_transposed, output_first
from flexround.utils.loss_scale import loss_scale
from flexround.utils.tensor_float32 import tensor_float32

NAME = "end_to_end"  # what is reported as if it were a unit
LOOKED_AT = 16  # samples whose error is reported: a pass over all costs more than the iterations


class Scaled(nn.Module):
    """A weight made of its steps, of which only the scales are learned.

    Attributes:
        change: the logarithm of a scale over where it starts, [groups, 1].
    """

    def __init__(self, integers: QuantizedTensor, device: torch.device) -> None:
        super().__init__()
        self._granularity = integers.grid.granularity
        self._start = integers.scale.to(device)
        self.change = nn.Parameter(torch.zeros_like(self._start))

    def scale(self) -> Tensor:
        """Return the scales as they are, [groups, 1]."""
        return self._start * self.change.exp()

    def forward(self, steps: Tensor) -> Tensor:
        """Return the weight [out, in, *kernel] of its codes less their zero points."""
        values = self._granularity.group(steps) * self.scale()
        return values.reshape(steps.shape).to(steps.dtype)


def check_end_to_end(
    settings: Settings, adapter: ModelAdapter, grid: Grid, activation: Activation | None
) -> None:
    """Check that adapter's model, the grid and the activations are some that this is for.

    Raises:
        ValueError: when they are not.
    """
    told = f"recon.e2e_iters={settings.e2e_iters}"
    if not settings.e2e_iters:
        return
    if not isinstance(adapter, LanguageAdapter) or adapter.vocabulary() is None:
        raise ValueError(
            f"{told} learns from the next token that a causal language model predicts, and "
            f"{type(adapter.model).__name__} predicts none; give recon.e2e_iters=0"
        )
    if isinstance(adapter, OffloadedAdapter):
        raise ValueError(
            f"{told} has the whole network on the device, and offload=true a block at a time; "
            "give one of them alone"
        )
    if grid.levels is not None:
        raise ValueError(
            f"{told} is for integers, not grid={grid.levels.name}; give grid=integer, or "
            "recon.e2e_iters=0"
        )
    if activation is not None:
        raise ValueError(f"{told} is for weights alone; give activation=none, or recon.e2e_iters=0")


def learn_end_to_end(
    job: UnitJob,
    tokens: Mapping[str, Tensor],
    integers: Mapping[str, QuantizedTensor],
    targets: Tensor,
) -> dict[str, QuantizedTensor]:
    """Learn the scales of the quantized network of job; return integers with them, by name.

    tokens is the calibration set as the model takes it, each [samples, tokens]; targets are what
    the full-precision network's last block gives of it, [samples, tokens, hidden].

    Raises:
        ValueError: when the loss is not finite.
    """
    adapter, settings = job.adapter, job.settings
    assert isinstance(adapter, LanguageAdapter), "check_end_to_end has seen to it"
    layers = list(adapter.layers().values())
    for callback in job.callbacks:
        callback.begin([NAME], settings.e2e_iters)
    kept = job.restore(NAME, layers, [])
    if kept is not None:
        return kept
    adapter.prepare()
    watch, loss = Stopwatch(adapter.device), LogitLoss("logits", adapter, tokens, job.mask)
    learned = {layer.name: _scaled(layer, integers[layer.name]) for layer in layers}
    # Adam's steps do not depend on it, but for eps.
    scaled_by = loss_scale(adapter.model.parameters())

    def divergence(samples: Tensor) -> Tensor:
        with job.products():
            batch = {n: moved(values[samples], adapter.device) for n, values in tokens.items()}
            outputs = adapter.hidden(batch)
        pace_of(adapter.device).step(adapter.device)
        return loss(outputs.float(), rows(targets, samples, adapter.device), samples)

    @torch.no_grad()
    def error() -> Errors:
        total, count = 0.0, 0
        with parametrize.cached():
            for batch in torch.arange(min(LOOKED_AT, samples)).split(settings.e2e_batch_size):
                positions = int(loss.counted(batch).sum())
                total, count = total + positions * divergence(batch).item(), count + positions
        return Errors(total / max(1, count))

    def losses(batch: Tensor, _: float) -> tuple[Tensor, Tensor]:
        found = divergence(batch)
        return found, scaled_by * found

    samples = len(targets) - settings.held_out
    before = error()
    steps = Adam([{"params": [scaled.change for scaled in learned.values()]}], settings.e2e_lr)
    optimizer = UnitOptimizer(
        NAME, "recon.e2e_lr", settings.e2e_iters, settings.e2e_batch_size, job.generator,
        job.callbacks,
    )  # fmt: skip
    schedules = [scheduled(steps, "linear", settings.e2e_iters)]
    with tensor_float32(job.precision == "tf32"):
        iterations = optimizer.run(samples, losses, schedules, lambda: None)
    found = {}
    for layer in layers:
        scale = learned[layer.name].scale().detach().to(integers[layer.name].scale.device)
        found[layer.name] = replace(integers[layer.name], scale=scale)
        parametrize.remove_parametrizations(layer.module, "weight", leave_parametrized=False)
        bake(layer, found[layer.name])
    job.save(NAME, watch.report(NAME, {}, before, error(), iterations), found, [])
    return found


@torch.no_grad()
def _scaled(layer: Layer, integers: QuantizedTensor) -> Scaled:
    """Have layer make its weight of steps and scales; return what the scales are learned by."""
    weight = layer.module.get_parameter("weight")
    plain = replace(integers, scale=torch.ones_like(integers.scale))
    output_first(layer.module, weight).copy_(plain.dequantize())
    made = Scaled(integers, weight.device)
    turned = is_transposed(layer.module)
    parametrize.register_parametrization(
        layer.module, "weight", Transposed(made) if turned else made
    )
    return made

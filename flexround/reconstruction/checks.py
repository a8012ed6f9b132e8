"""Checks of what a reconstruction is given, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flexround.activations.schemes import Activation
from flexround.attach import check_weights
from flexround.calibration.enough import check_enough
from flexround.calibration.finite import first_not_finite
from flexround.grid import Grid
from flexround.kernels.chunking import check_compiler
from flexround.models.base import ModelAdapter
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.reconstruction.precision import check_precision
from flexround.reconstruction.settings import Settings, Start
from flexround.reconstruction.unit import Loss
from flexround.structure import Layer


@dataclass(frozen=True)
class Checked:
    """What the checks of a model have found; a loop that is given it checks no weight again.

    Attributes:
        learns: whether the method has anything to learn on some layer.
    """

    learns: bool


def check_model(adapter: ModelAdapter, grid: Grid, quantizer: QuantizerFactory) -> Checked:
    """Check every layer's weight against the grid and the method; under offload a block at a time.

    Raises:
        ValueError: when a weight does not fit, or is two layers'; names the layer.
    """
    learns = False
    check_owners(adapter)
    for block in adapter.blocks():
        with adapter.onloaded(block):
            learns |= check_weights(block.layers, grid, quantizer)
    return Checked(learns)


def check_owners(adapter: ModelAdapter) -> None:
    """Check that no layer's weight is another module's too, nor a layer one of two blocks.

    Raises:
        ValueError: when one is; names both places.
    """
    holders: dict[nn.Parameter, dict[nn.Module, str]] = {}
    for name, module in adapter.model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, {})[module] = name
    homes: dict[nn.Module, str] = {}
    for block in adapter.blocks():
        for layer in block.layers:
            home = homes.setdefault(layer.module, block.name)
            if home != block.name:
                raise ValueError(
                    f"layer {layer.name} is one of {home} and of {block.name}: to quantize it for "
                    "one is to change the other, whose inputs are others; give each its own"
                )
            held = holders.get(cast(nn.Parameter, layer.module.weight), {})
            if len(held) > 1:
                owner, other = list(held.values())[:2]
                raise ValueError(
                    f"layers {owner} and {other} share one weight: to quantize one is to change "
                    "the other, whose inputs are others; give each its own, or leave the two: "
                    f"model.leave=[{owner},{other}]"
                )


def check_samples(
    adapter: ModelAdapter, calibration: Sequence[Any], batch_size: int, held_out: int = 0
) -> None:
    """Check that the calibration set holds a mini-batch besides the samples held out of it.

    Raises:
        ValueError: when it does not, or a sample is padding alone; names it.
    """
    check_enough(sum(map(adapter.num_samples, calibration)), batch_size, held_out)
    mask = adapter.loss_mask(calibration)
    empty = [] if mask is None else (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"calibration data: sample {empty[0]} is padding alone, from which nothing is learned; "
            "take it out"
        )


def check_finite_samples(adapter: ModelAdapter, calibration: Sequence[Any]) -> None:
    """Check that the calibration data are finite.

    Raises:
        ValueError: when they are not; names the first sample.
    """
    seen = 0
    for batch in calibration:
        tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        found = [sample for sample in map(first_not_finite, tensors) if sample is not None]
        if found:
            raise ValueError(
                f"calibration data: sample {seen + min(found)} holds values that are not finite; "
                "take it out, or mend how the task prepares it"
            )
        seen += adapter.num_samples(batch)


def check_machine(settings: Settings, adapter: ModelAdapter) -> None:
    """Check that the device has the precision, and the machine the compiler, that are asked for.

    Raises:
        ValueError: when it has not.
    """
    check_precision(settings.precision, adapter.device)
    if settings.compile:
        check_compiler(adapter.device)


def check_step_sizes(settings: Settings, activation: Activation) -> None:
    """Check that there are step sizes where the settings learn some.

    Raises:
        ValueError: when there are none.
    """
    if settings.act_steps != "start" and not activation.learns:
        raise ValueError(
            f"recon.act_steps={settings.act_steps} learns step sizes, and "
            f"{type(activation).__name__} has none; give recon=block or recon=layer, or "
            "activation=static_per_tensor"
        )


def check_loss(loss: Loss, adapter: ModelAdapter) -> None:
    """Check that what a relative loss divides by is a token's own size.

    Raises:
        ValueError: when a block's outputs are images; names the block.
    """
    for block in adapter.blocks() if loss == "relative" else ():
        if block.channel_dim != -1:
            raise ValueError(
                f"recon.loss=relative is of tokens, which a norm scales next, and {block.name} "
                "gives images; give recon.loss=squared or recon.loss=trimmed"
            )


def check_start(start: Start, grid: Grid) -> None:
    """Check that the grid has codes that learning can start from.

    Raises:
        ValueError: when it is a table of levels, between which a weight has no place in steps.
    """
    if start != "nearest" and grid.levels is not None:
        raise ValueError(
            f"recon.start={start} is for integers, not grid={grid.levels.name}; give grid=integer, "
            "or recon.start=nearest"
        )


def check_annealed(settings: Settings, method: str) -> None:
    """Check that settings suit a method that adds to the loss what drives weights to the grid.

    The loss has to be the one that the weight of what it adds is made for. Until the end its
    rounding is soft, and starts at the full-precision weight: the lowest error of a mini-batch is
    an early one's, and on held-out samples the rounded weight errs least before it has begun.

    Raises:
        ValueError: when the loss is another, or parameters of an earlier iteration may be kept.
    """
    for name, ends in (("keep_best", settings.keep_best), ("patience", settings.patience)):
        if ends:
            raise ValueError(
                f"recon.{name}={str(ends).lower()}: {method} decides its rounding in the last of "
                f"its iterations; leave recon.{name} out, or give another quant="
            )
    for name, given, plain in (
        ("last_loss", settings.last_loss, "block"), ("loss", settings.loss, "squared")
    ):  # fmt: skip
        if given != plain:
            raise ValueError(
                f"recon.{name}={given}: what {method} adds to the loss is weighed against the "
                f"squared error of a block's output; give recon.{name}={plain}, or another quant="
            )


def check_sites(activation: Activation, adapter: ModelAdapter) -> None:
    """Check that adapter's model has what activation quantizes.

    Raises:
        ValueError: when it has not, or tokens are asked for where there are none.
    """
    if activation.per_token and any(b.channel_dim != -1 and b.sites for b in adapter.blocks()):
        raise ValueError(
            f"{type(activation).__name__} is for transformers, whose activations are tokens; "
            "give activation=static_per_tensor"
        )
    sites = [site for block in adapter.blocks() for site in block.sites]
    if not any(site.role != "kv" for site in sites):
        raise ValueError("the model names no activation to quantize; give activation=none")
    if activation.kv_bits is not None and not any(site.role == "kv" for site in sites):
        raise ValueError(
            f"kv_bits={activation.kv_bits}: the model has no key and value layers of their own"
        )


def check_reached(
    layers: Sequence[Layer], quantizers: Sequence[WeightQuantizer], learned: Sequence[nn.Parameter]
) -> None:
    """Check that the loss is a function of all that a method learns of a layer, or of nothing.

    Nothing is where no mini-batch reaches the layer, as it may be with experts.

    Raises:
        ValueError: when a parameter has no gradient beside one that has; names it.
    """
    own = {id(param) for param in learned}
    for layer, quantizer in zip(layers, quantizers, strict=True):
        grads = {n: p.grad for n, p in quantizer.named_parameters() if id(p) in own}
        idle = [name for name, grad in grads.items() if grad is None]
        if 0 < len(idle) < len(grads):
            raise ValueError(
                f"layer {layer.name}: {idle[0]} of {type(quantizer).__name__} is learned, and has "
                "no part in the loss; a method's parameters have to be in what runs (rescale, "
                "round, dequantization_scale, or forward as a whole), not in reference alone"
            )

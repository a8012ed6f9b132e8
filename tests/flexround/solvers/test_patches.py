"""Patches of every known kind of layer, against the layer's own output; other kinds refused.

A convolution is its weight times its patches, so the solver's objective is the mean squared error
of its output: their ratio is 1 where the patches are the layer's.
"""

from __future__ import annotations

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from timm.layers import Linear as TimmLinear
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from transformers.pytorch_utils import Conv1D

from flexround.attach import check_weights
from flexround.grid import Grid, PerTensor
from flexround.quantizers.rtn import RTN
from flexround.solvers.hessian import Hessians, objective
from flexround.solvers.patches import geometry, rows_of
from flexround.structure import Layer, counted, output_first

GRID = Grid(4, True, PerTensor())
IMAGE, ODD, SEQUENCE = (3, 8, 9, 9), (3, 8, 8, 7), (3, 8, 24)


class Named(nn.Conv2d):
    """A subclass that adds nothing to what a convolution computes."""


KINDS = {
    "linear": (lambda: nn.Linear(12, 5), (3, 7, 12)),
    "linear on vectors": (lambda: nn.Linear(12, 5), (9, 12)),
    "linear of timm": (lambda: TimmLinear(12, 5), (3, 7, 12)),
    "Conv1D of transformers": (lambda: Conv1D(5, 12), (3, 7, 12)),
    "3x3": (lambda: nn.Conv2d(8, 6, 3, padding=1, bias=False), IMAGE),
    "1x1": (lambda: nn.Conv2d(8, 6, 1), IMAGE),
    "without a batch axis": (lambda: nn.Conv2d(8, 6, 3, padding=1), IMAGE[1:]),
    "grouped": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=4), IMAGE),
    "depthwise, dilated, strided": (
        lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, stride=2, groups=8), IMAGE),
    "depthwise with a multiplier": (lambda: nn.Conv2d(8, 16, 3, groups=8), IMAGE),
    "rectangular": (
        lambda: nn.Conv2d(8, 6, (1, 5), padding=(0, 2), stride=(2, 1), dilation=(3, 2)), IMAGE),
    "same": (lambda: nn.Conv2d(8, 6, 3, padding="same"), IMAGE),
    "same, even kernel": (lambda: nn.Conv2d(8, 6, (4, 2), padding="same", dilation=(1, 3)), IMAGE),
    "same, reflected": (
        lambda: nn.Conv2d(8, 6, 4, padding="same", padding_mode="reflect"), IMAGE),
    "valid": (lambda: nn.Conv2d(8, 6, 3, padding="valid"), IMAGE),
    "reflect": (lambda: nn.Conv2d(8, 6, 3, padding=(1, 2), padding_mode="reflect"), IMAGE),
    "replicate": (lambda: nn.Conv2d(8, 6, 3, padding=2, padding_mode="replicate"), IMAGE),
    "circular": (
        lambda: nn.Conv2d(8, 6, (3, 5), padding=(2, 1), padding_mode="circular", groups=2), IMAGE),
    "a subclass by name": (lambda: Named(8, 6, 3, padding=1), IMAGE),
    "timm's same": (lambda: Conv2dSame(8, 6, 3, stride=2), ODD),
    "timm's same, depthwise": (lambda: Conv2dSame(8, 8, 5, stride=2, groups=8), ODD),
    "timm's same, dilated": (lambda: Conv2dSame(8, 6, (2, 3), stride=(1, 3), dilation=2), ODD),
    "Conv1d": (lambda: nn.Conv1d(8, 6, 3, padding=1, stride=2), SEQUENCE),
    "Conv1d, 1": (lambda: nn.Conv1d(8, 6, 1), (3, 8, 8)),
    "Conv1d, depthwise as in Mamba": (
        lambda: nn.Conv1d(8, 8, 4, groups=8, padding=3), SEQUENCE),
    "Conv1d, grouped, same, circular": (
        lambda: nn.Conv1d(8, 4, 4, groups=2, padding="same", padding_mode="circular"), SEQUENCE),
}  # fmt: skip


def layer_and_input(kind):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    return make().double().requires_grad_(False), torch.randn(shape, dtype=torch.float64) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_layers_output_is_its_weight_times_its_patches(kind):
    module, inputs = layer_and_input(kind)
    output = module(inputs)
    convolves = isinstance(module, nn.Conv1d | nn.Conv2d)
    channels = -1 - len(module.kernel_size) if convolves else -1
    rows = rows_of(module, inputs)  # [groups, vectors, in]
    weight = output_first(module, module.weight).flatten(1)
    weight = weight.view(len(rows), -1, weight.shape[1])  # [groups, out of a group, in]
    ours = (rows @ weight.transpose(1, 2)).transpose(1, 2).flatten(0, 1).T  # [vectors, out]
    if module.bias is not None:
        ours = ours + module.bias
    torch.testing.assert_close(ours, output.movedim(channels, -1).flatten(0, -2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_claimed_objective_is_the_true_error(kind):
    module, inputs = layer_and_input(kind)
    hessians = Hessians([Layer("it", module)])
    with hessians.collecting():
        before = module(inputs)
    weight = module.weight.clone()
    module.weight += 0.1 * torch.randn_like(weight)
    claimed = objective(
        *(output_first(module, w).flatten(1) for w in (weight, module.weight)),
        hessians.of(Layer("it", module)),
    )
    error = (module(inputs) - before).square()
    true = error.sum() / (error.numel() / len(output_first(module, weight)))
    assert claimed.sum().item() == pytest.approx(true.item(), rel=1e-5)


ALONG = [kind for kind in KINDS if kind.startswith("Conv1d,")]  # by steps of one token


@pytest.mark.parametrize("kind", ALONG)
def test_padded_tokens_have_no_part_in_the_sums_of_a_convolution(kind):
    """Its error counts where its output is a token's, wherever its patches reach.

    "Conv1d, 1" has as many channels as tokens, which are not to be taken for them.
    """
    module, inputs = layer_and_input(kind)
    tokens = inputs.shape[-1]
    mask = torch.arange(tokens) < torch.tensor([[tokens], [tokens - 3], [2]])
    layer = Layer("it", module)
    hessians = Hessians([layer])
    with hessians.collecting(mask):
        before = module(inputs)
    weight = module.weight.clone()
    module.weight += 0.1 * torch.randn_like(weight)
    change = (w.flatten(1) for w in (weight, module.weight))
    claimed = objective(*change, hessians.of(layer)).sum()
    error = (module(inputs) - before)[..., :tokens].transpose(1, 2)[mask]
    true = error.square().sum() / len(error)
    assert claimed.item() == pytest.approx(true.item(), rel=1e-5)
    own = [text[:, :count].T for text, count in zip(inputs, mask.sum(dim=1), strict=True)]
    # What ranges of activations are set on.
    torch.testing.assert_close(counted(layer, inputs, mask), torch.cat(own))


def test_layers_share_a_sum_only_where_they_cut_the_same_patches():
    same = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 9, 3, padding=1)
    assert geometry(same[0]) == geometry(same[1])
    others = [
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"), Conv2dSame(4, 4, 3, padding=1), nn.Linear(4, 4),
    ]  # fmt: skip
    assert all(geometry(same[0]) != geometry(other) for other in others)


class Doubling(nn.Linear):
    """A linear layer that computes with twice its weight."""

    def forward(self, x):
        """Return x (2 W)^T."""
        return nn.functional.linear(x, 2 * self.weight)


class Convolving(nn.Conv2d):
    """A convolution that changes its weight on the way."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight.abs(), bias)


def patched():
    module = nn.Linear(4, 4)
    module.forward = lambda x: x
    return module


MADE_ELSEWHERE = {
    "weight_norm": lambda: weight_norm(nn.Conv2d(4, 4, 3)),
    "weight_norm by parametrization": lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    "spectral_norm": lambda: spectral_norm(nn.Linear(4, 4)),
    "spectral_norm by parametrization": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "pruning": lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
}
OWN_FORWARD = {
    "StdConv2d": lambda: StdConv2d(4, 4, 3),
    "ScaledStdConv2d": lambda: ScaledStdConv2d(4, 4, 3),
    "Doubling": lambda: Doubling(4, 4),
    "Convolving": lambda: Convolving(4, 4, 3),
    "Linear": patched,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [*((make, "its weight is made of other parameters") for make in MADE_ELSEWHERE.values()),
     *((make, f"{name} has a forward pass of its own") for name, make in OWN_FORWARD.items())],
    ids=[*MADE_ELSEWHERE, *OWN_FORWARD],
)  # fmt: skip
def test_a_layer_whose_weight_is_not_what_it_computes_with_is_refused(make, message):
    with pytest.raises(ValueError, match=f"layer it: {message}") as refusal:
        check_weights([Layer("it", make())], GRID, RTN)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_is_not_refused(kind):
    assert not check_weights([Layer("it", layer_and_input(kind)[0])], GRID, RTN)

"""What a network's layers take lies on a grid of activations, whatever computed it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flexround
from flexround.models.quantized_inputs import unquantized
from flexround.structure import QUANTIZABLE

BITS = 2


class Residual(nn.Module):
    """A residual block whose activation function may be any, a module's or a function's."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.function = function

    def forward(self, x):
        """Return what it gives."""
        return self.function(x + self.second(self.function(self.first(x))))


class Gated(nn.Module):
    """Squeeze and excitation, whose product a layer takes."""

    def __init__(self):
        super().__init__()
        self.expand, self.gate, self.project = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.act, self.sigmoid = nn.SiLU(), nn.Sigmoid()

    def forward(self, x):
        """Return what it gives."""
        y = self.act(self.expand(x))
        return x + self.project(y * self.sigmoid(self.gate(y.mean((2, 3), keepdim=True))))


class Net(nn.Module):
    """A classifier with blocks."""

    def __init__(self, *blocks):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*blocks)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        """Return what it gives."""
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class SiLUOfOnesOwn(nn.Module):
    """An activation function of no class that is known."""

    def forward(self, x):
        """Return what it gives."""
        return x * torch.sigmoid(x)


BLOCKS = {
    "a functional ReLU": lambda: Residual(F.relu),
    "in place": lambda: Residual(torch.relu_),
    "a sigmoid": lambda: Residual(nn.Sigmoid()),
    "a tanh": lambda: Residual(nn.Tanh()),
    "a class of one's own": lambda: Residual(SiLUOfOnesOwn()),
    "a gate": Gated,
}


def levels(network, images):
    """Return how many values each layer takes, by name; those of pooled tensors left out."""
    found = {}

    def look(name):
        return lambda _, args: found.__setitem__(name, args[0].unique().numel())

    inner = [(n, m) for n, m in network.named_modules() if isinstance(m, QUANTIZABLE)]
    handles = [m.register_forward_pre_hook(look(n)) for n, m in inner]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return {name: count for name, count in found.items() if not name.endswith("gate")}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_layer_behind_the_first_takes_no_more_values_than_its_bits_have(block):
    torch.manual_seed(0)
    images = torch.randn(32, 3, 8, 8)
    network = Net(block(), block()).eval()
    found = flexround.quantize(network, images, method="rtn", bits=4, act_bits=BITS)
    counts = levels(found.network, images)
    del counts["stem"], counts["head"]  # the image, and means of quantized values
    assert len(counts) >= 4
    # The first layer's output, a stem, has eight bits in some settings; here it has the others'.
    assert max(counts.values()) <= 2**BITS, counts


def test_a_network_of_module_functions_alone_gets_no_further_sites():
    """ResNet's and MobileNetV2's are BRECQ's; pooling and reshaping keep what is quantized."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    layers = [m for m in network if isinstance(m, QUANTIZABLE)]
    functions = [network[1], network[4]]
    assert unquantized(network, torch.randn(2, 3, 8, 8), layers, [], functions) == []
    assert unquantized(network, torch.randn(2, 3, 8, 8), layers, [], functions[:1]) == [layers[2]]


def test_the_last_site_is_the_classifiers_input_not_what_is_done_with_its_output():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU()
    ).eval()
    found = flexround.quantize(network, torch.randn(64, 8), method="rtn", bits=8, act_bits=2)
    with torch.no_grad():
        logits = found.network(torch.randn(512, 8))
    taken = levels(found.network, torch.randn(512, 8))
    assert 4 < taken["4"] <= 2**8, "the classifier's input keeps eight bits"
    assert logits.unique().numel() > 2**8, "logits are not quantized"


def test_learned_ranges_of_such_inputs_are_on_their_grid_too():
    torch.manual_seed(0)
    images, network = torch.randn(64, 3, 8, 8), Net(Gated()).eval()
    found = flexround.quantize(
        network, images, method="flexround", bits=4, act_bits=4,
        options={"recon.iters": 5, "recon.inputs": "mixed"},
    )  # fmt: skip
    assert max(n for name, n in levels(found.network, images).items() if "blocks" in name) <= 2**4

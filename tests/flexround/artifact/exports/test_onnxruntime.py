"""Files of every width of weights and activations, opened by onnxruntime as it comes.

With its default options onnxruntime fuses quantized layers to kernels that not every type has; what
it is given must load, and answer as torch does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from flexround.activations.hooks import Activations
from flexround.activations.quantizers import TensorQuantizer
from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.models.base import ModelAdapter
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from flexround.structure import Block, Layer, Site

pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra export is not installed")

from flexround.artifact.exports.onnx import export  # noqa: E402

ACT_BITS = (None, *range(2, 9))
WAYS = list(
    itertools.product(
        (PerTensor(), PerChannel(), PerGroup(9)), (True, False), (True, False), (True, False)
    )
)


@dataclass(frozen=True)
class Setting:
    """The widths of a branch, and what else there is to them.

    Attributes:
        tokens: whether its convolution is depthwise and its linear layer on tokens.
    """

    grid: Grid
    act_bits: int | None
    act_symmetric: bool
    tokens: bool


def settings(turn):
    """Return every pair of widths, each in one of the ways; all turns take all pairs all ways."""
    found = []
    for (row, bits), (column, act_bits) in itertools.product(
        enumerate(range(2, 9)), enumerate(ACT_BITS)
    ):
        granularity, *others = WAYS[(5 * row + 7 * column + turn) % len(WAYS)]
        found.append(Setting(Grid(bits, others[0], granularity), act_bits, *others[1:]))
    return found


def conv1d(into, out):
    """Return GPT-2's linear layer, which stores its weight as [in, out], with Linear's numbers."""
    utils = pytest.importorskip("transformers.pytorch_utils", reason="the extra language")
    made, plain = utils.Conv1D(out, into), nn.Linear(into, out)
    made.load_state_dict({"weight": plain.weight.T, "bias": plain.bias})
    return made


class Branch(nn.Module):
    """A convolution and a linear layer, as alone as in a network of their own."""

    def __init__(self, tokens: bool, turned: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4 if tokens else 1)
        self.linear = conv1d(36, 4) if turned else nn.Linear(36, 4)
        self.relu, self.tokens = nn.ReLU(), tokens

    def forward(self, x):
        """Return [batch, 4] of images [batch, 4, 6, 6]."""
        x = self.relu(self.conv(x)).flatten(2)  # 4 tokens of 36
        return self.linear(x if self.tokens else x[:, 0]).flatten(1)[:, :4]


class Branches(nn.Module):
    """All branches side by side: [batch, branches, 4]."""

    def __init__(self, given, turned: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(setting.tokens, turned) for setting in given)

    def forward(self, x):
        """Return every branch's answer."""
        return torch.stack([branch(x) for branch in self.branches], 1)


class Adapter(ModelAdapter):
    """The branches as blocks, which need be no chain: nothing is reconstructed."""

    def __init__(self, given, turned: bool) -> None:
        torch.manual_seed(0)
        self.device = self.storage_device = torch.device("cpu")
        self.model = Branches(given, turned).eval().requires_grad_(False)
        self._blocks = []
        for index, (branch, setting) in enumerate(zip(self.model.branches, given, strict=True)):
            name = f"branches.{index}"
            layers = [Layer(f"{name}.{n}", getattr(branch, n)) for n in ("conv", "linear")]
            sites = [Site(f"{layer.name}.input", [layer.module], "input") for layer in layers]
            sites.append(Site(f"{layers[-1].name}.output", [branch.linear], "output"))
            self._blocks.append(
                Block(name, branch, layers, sites=() if setting.act_bits is None else sites)
            )

    def blocks(self):
        """Return the branches."""
        return self._blocks

    def forward(self, batch):
        """Return [batch, branches, 4]."""
        return self.model(batch)


@dataclass(frozen=True)
class ByBranch:
    """Ranges set by min-max, of each branch's own width."""

    given: list[Setting]
    kv_bits = None
    init_samples, ranges_from = 8, "quant"
    learns: ClassVar[bool] = False
    per_token: ClassVar[bool] = False

    def quantizer(self, name, role, ranges):
        """Return the quantizer of a site."""
        setting = self.given[int(name.split(".")[1])]
        return TensorQuantizer(name, setting.act_bits, setting.act_symmetric, ranges)


def near_ties(target, images):
    """Return [images, branches]: whether an activation of it lies halfway between two codes.

    There the order of a sum decides the code, and with it a whole step. The largest magnitude of a
    symmetric range is at such a place wherever it is a negative value's.
    """
    found = torch.zeros(len(images), len(target.blocks()), dtype=torch.bool)

    def look(quantizer, given):
        codes = given[0].detach().flatten(1) / quantizer.scale
        near = ((codes - codes.floor() - 0.5).abs() < 1e-4).any(1)
        found[:, int(quantizer.name.split(".")[1])] |= near

    hooks = [q.register_forward_pre_hook(look) for q in target.activations.quantizers()]
    target.forward(images)
    for hook in hooks:
        hook.remove()
    return found.numpy()


@torch.no_grad()
def exported(path, given, turned=False):
    """Write the branches to path; return images, torch's answers, and where no tie is near."""
    target, integers = Adapter(given, turned), {}
    images = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    for block, setting in zip(target.blocks(), given, strict=True):
        attach(block.layers, RTN, setting.grid, MinMax())
        integers |= freeze(block.layers)
    if any(setting.act_bits for setting in given):
        draws = torch.Generator().manual_seed(0)
        target.activations = Activations(target.blocks(), ByBranch(given), MinMax(), draws)
        target.activations.leave_on()
    wanted = target.forward(images)  # the first time sets the ranges
    clear = ~near_ties(target, images)
    assert clear.any(0).all(), "every branch has an image to hold"
    assert clear.mean() > 0.8, "most images are held"
    export(target, integers, images, path)
    return images.numpy(), wanted.numpy(), clear


def wrong(path, given, images, wanted, clear, limits, **entries):
    """Return the settings whose clear answers differ by more than limits, by the largest one."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    answer = session.run(None, {"images": images})[0]
    differ = np.abs(answer - wanted).max(2) * clear
    found = differ.max(0) / np.abs(wanted).max((0, 2))  # by branch
    return [(s, d) for s, d, limit in zip(given, found, limits, strict=True) if not d <= limit]


@pytest.mark.slow  # test_onnx.py runs some
@pytest.mark.parametrize("turn", range(len(WAYS)))
def test_onnxruntime_loads_every_width_and_answers_as_torch_does(tmp_path, turn):
    path, given = tmp_path / "it.onnx", settings(turn)
    images, wanted, clear = exported(path, given)
    # Behind 8-bit activations onnxruntime rounds a bias to the product of two scales, as its
    # kernels for integers need it, and a product with quantized weights and plain tokens to 8 bits.
    # Else nothing but the order of a sum differs.
    limits = [
        0.05 if s.act_bits == 8 else 0.02 if s.act_bits is None and s.tokens else 1e-5
        for s in given
    ]
    assert not wrong(path, given, images, wanted, clear, limits)
    limits = [0.05 if s.act_bits == 8 else 1e-5 for s in given]
    assert not wrong(
        path, given, images, wanted, clear, limits, qdq_matmulnbits_accuracy_level="1"
    ), "docs/onnx.md names this option, which leaves tokens as they are"


@pytest.mark.slow
def test_conv1d_of_every_width_too(tmp_path):
    path, given = tmp_path / "it.onnx", settings(0)
    images, wanted, clear = exported(path, given, turned=True)
    # As above, but what is said of tokens there holds for all that Conv1D takes.
    limits = [0.05 if s.act_bits == 8 else 0.02 if s.act_bits is None else 1e-5 for s in given]
    assert not wrong(path, given, images, wanted, clear, limits)
    limits = [0.05 if s.act_bits == 8 else 1e-5 for s in given]
    assert not wrong(path, given, images, wanted, clear, limits, qdq_matmulnbits_accuracy_level="1")

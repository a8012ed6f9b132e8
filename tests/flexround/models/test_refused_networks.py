"""Networks that are refused: each in one line that names what it can't be followed for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import CondConv2d, StdConv2d
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.models.vision_transformer import VisionTransformer

from flexround.models.vision import VisionAdapter, VisionModel

CPU = torch.device("cpu")


def head(channels=4):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def chain(*layers):
    return nn.Sequential(*layers, *head())


def named(name):
    return VisionModel("torchvision", name, None, 8, False, False, []).build(5)


def transformer():
    net = VisionTransformer(64, 32, 1, 2, 16, 16, num_classes=5)
    nn.init.normal_(net.heads.head.weight)  # a head of zeros needs nothing before it
    return net


@pytest.mark.parametrize("name", ["raft_small", "fcn_resnet50", "fasterrcnn_resnet50_fpn"])
def test_a_network_of_torchvision_that_classifies_nothing_is_refused(name):
    """By its name: made, some fetch the weights of a part of theirs."""
    with pytest.raises(ValueError, match=f"{name}: torchvision has no such model that classifies"):
        named(name)


class Mixing(nn.Module):
    """A network that multiplies by a matrix of its own, which it may hold as [1, in, out]."""

    def __init__(self, *lead):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.mix = nn.Parameter(torch.randn(*lead, 4, 4))
        self.place = nn.Parameter(torch.randn(1, 4, 62, 62))  # only added
        self.scale = nn.Parameter(torch.randn(1, 4, 62, 62))  # multiplied value by value

    def forward(self, x):
        """Return logits."""
        pooled = (self.stem(x) * self.scale + self.place).mean((2, 3))
        mixed = pooled @ self.mix if self.mix.dim() == 2 else (pooled[None] @ self.mix)[0]
        return self.head(mixed.relu())


class Borrowing(nn.Module):
    """A network that takes the weight of a layer instead of calling it."""

    def __init__(self):
        super().__init__()
        self.conv, self.borrowed = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        """Return logits."""
        x = nn.functional.linear(self.conv(x).mean((2, 3)), self.borrowed.weight)
        return self.head(x)


class Autoencoder(nn.Module):
    """A network that multiplies by the weight of a layer once more, turned."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x):
        """Return logits."""
        weight = self.encoder.weight.transpose(0, 1)
        back = nn.functional.conv2d(self.encoder(x).relu(), weight)
        return self.head(back).mean((2, 3))


class Branching(nn.Module):
    """Two layers that take one tensor side by side."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(i, 4, 3) for i in (3, 4, 4))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        """Return logits."""
        x = self.stem(x)
        return self.head(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


class Skipping(nn.Module):
    """A network whose logits take more than its last layer's output."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 5)

    def forward(self, x):
        """Return logits."""
        x = self.conv(x).mean((2, 3))
        return self.head(x) + x


class BasicBlock(nn.Module):
    """A unit by its name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x, scale=None):
        """Return conv(x), or of several x their sum's."""
        x = sum(x) if isinstance(x, list) else x
        return self.conv(x) * (1 if scale is None else scale)


class Calling(nn.Module):
    """A network that calls its unit by the given function."""

    def __init__(self, call):
        super().__init__()
        self.stem, self.unit, self.call = nn.Conv2d(3, 4, 3), BasicBlock(), call
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        """Return logits."""
        return self.head(self.call(self.unit, self.stem(x)).mean((2, 3)))


class Twofold(nn.Sequential):
    """A network of two answers."""

    def forward(self, x):
        """Return logits twice."""
        return (super().forward(x),) * 2


NETWORKS = {
    "densenet": (lambda: named("densenet121"), "needs more than the output of .*denselayer1.conv2"),
    "inception": (lambda: named("googlenet"), "block inception3a.* needs more than the output"),
    "multi-head attention": (transformer, "MultiheadAttention holds .*in_proj_weight"),
    "window attention": (lambda: named("swin_t"), "relative_position_bias_table"),
    "a matrix of its own": (Mixing, r"Mixing holds mix \[4, 4\], which is no weight of a"),
    "a matrix below an axis of one": (partial(Mixing, 1), r"Mixing holds mix \[1, 4, 4\], which"),
    "a borrowed weight": (Borrowing, "layer borrowed: its weight is used without the layer being"),
    "a weight that is taken once more": (Autoencoder, "layer encoder: its weight is in 2 products"),
    "branches": (Branching, "block right needs more than the output of left"),
    "a skip to the logits": (Skipping, "the logits need more than the output of head"),
    "BatchNorm without statistics": (
        lambda: chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        "BatchNorm2d 1 keeps no running statistics"),
    "weight_norm": (
        lambda: chain(weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        "layer 0: its weight is made of other parameters"),
    "weight_norm by parametrization": (
        lambda: chain(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        "layer 0: its weight is made of other parameters"),
    "a standardised weight": (
        lambda: chain(StdConv2d(3, 4, 3)), "layer 0: StdConv2d has a forward pass of its own"),
    "Conv3d": (
        lambda: chain(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3), nn.Flatten(2, 3)),
        r"Conv3d holds 1.weight \[4, 1, 3, 3, 3\]"),
    "ConvTranspose": (lambda: chain(nn.ConvTranspose2d(3, 4, 3)), "ConvTranspose2d holds 0.weight"),
    "CondConv": (
        lambda: chain(nn.Conv2d(3, 4, 1), Conditional()), "CondConv2d holds 1.conv.weight"),
    "a layer three times": (
        lambda: Calling(lambda unit, x: unit.conv(unit.conv(unit.conv(x)))),
        "layer unit.conv is used 3 times"),
    "a unit of several tensors": (
        lambda: Calling(lambda unit, x: unit([x, x])), "block unit takes or gives more than one"),
    "a unit with an argument": (
        lambda: Calling(lambda unit, x: unit(x, x[:, :1])), "block unit takes or gives more than"),
    "a unit passed by": (
        lambda: Calling(lambda unit, x: unit.conv(x)), "block unit is not called as a whole"),
    "no layer": (lambda: nn.Sequential(nn.Flatten()), "no convolution or linear layer"),
    "several answers": (lambda: Twofold(*chain(nn.Conv2d(3, 4, 3))), "2 samples with tuple"),
    "images of another size": (
        lambda: VisionModel("timm", "vit_tiny_patch16_224", None, 8, False, False, []).build(5),
        "forward pass fails on images of 64 x 64 pixels: AssertionError"),
}  # fmt: skip


class Conditional(nn.Module):
    """A convolution whose kernel is a mix of several."""

    def __init__(self):
        super().__init__()
        self.conv = CondConv2d(4, 4, 3, num_experts=2)

    def forward(self, x):
        """Return the convolution of a fixed mix."""
        return self.conv(x, x.new_full((len(x), 2), 0.5))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", NETWORKS)
def test_what_can_not_be_followed_is_refused_in_one_line(kind):
    torch.manual_seed(0)
    make, message = NETWORKS[kind]
    with pytest.raises(ValueError, match=message) as refusal:
        VisionAdapter(make().eval(), torch.randn(2, 3, 64, 64), 8, CPU)
    assert "\n" not in str(refusal.value)


def test_a_batch_norm_that_no_convolution_feeds_stays_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), *head()).eval()
    net[0].running_mean.normal_()
    images = torch.randn(2, 3, 8, 8)
    wanted = net(images)
    target = VisionAdapter(net, images, 8, CPU)
    assert isinstance(target.model[0], nn.BatchNorm2d)
    torch.testing.assert_close(target.forward(images), wanted)


def test_what_takes_no_part_in_the_logits_is_left_alone():
    """An auxiliary classifier of training."""

    class Auxiliary(nn.Sequential):
        def __init__(self):
            super().__init__(*chain(nn.Conv2d(3, 4, 3)))
            self.auxiliary = [nn.ConvTranspose2d(4, 4, 3)]
            self.register_module("aux", self.auxiliary[0])

        def forward(self, x):
            """Return logits."""
            for name, layer in self.named_children():
                x = x if name == "aux" else layer(x)
            return x

    assert list(VisionAdapter(Auxiliary(), torch.randn(2, 3, 8, 8), 8, CPU).layers()) == ["0", "3"]

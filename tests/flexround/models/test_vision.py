"""Convolutional networks as chains of blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flexround.models.batch_norm import fold_batch_norm
from flexround.models.vision import VisionAdapter, VisionModel

CPU = torch.device("cpu")
# Units by hand from the architectures: residual blocks, and the layers outside of them.
COUNTS = {
    ("torchvision", "resnet18"): (8, ["conv1"], ["fc"]),
    ("torchvision", "resnet50"): (16, ["conv1"], ["fc"]),
    ("torchvision", "mobilenet_v2"): (17, ["features.0.0"], ["features.18.0", "classifier.1"]),
    ("timm", "tf_efficientnet_lite0"): (16, ["conv_stem"], ["conv_head", "classifier"]),
}


def network(library, name, classes=10):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = VisionModel(library, name, None, 8, False, False, []).build(classes)
        for module in net.modules():  # fresh statistics would make folding trivial
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.2)
    return net


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("library", "name"), COUNTS, ids=[name for _, name in COUNTS])
def test_blocks_are_brecqs_units(library, name):
    adapter = VisionAdapter(network(library, name), images(), 8, CPU)
    blocks = adapter.blocks()
    inner, head, tail = COUNTS[library, name]
    names = [block.name for block in blocks]
    assert names[: len(head)] == head
    assert names[-len(tail) :] == tail
    assert len(blocks) == inner + len(head) + len(tail)
    quantized = [layer for block in blocks for layer in block.layers]
    every = [m for m in adapter.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {id(layer.module) for layer in quantized} == {id(m) for m in every}
    assert len(quantized) == len(every)
    assert [layer.name for layer in quantized if layer.bits == 8] == [
        quantized[0].name,
        quantized[-1].name,
    ]


def test_layers_of_a_block_come_in_execution_order():
    adapter = VisionAdapter(network("torchvision", "resnet18"), images(), None, CPU)
    block = next(b for b in adapter.blocks() if b.name == "layer2.0")
    names = [layer.name.removeprefix("layer2.0.") for layer in block.layers]
    assert names == ["conv1", "conv2", "downsample.0"]
    assert all(layer.bits is None for layer in block.layers)


def test_only_a_direct_activation_belongs_to_a_layer():
    """AdaRound's f_a: conv1 is followed by ReLU, conv2 by the residual add."""
    adapter = VisionAdapter(network("torchvision", "resnet18"), images(), 8, CPU)
    block = next(b for b in adapter.blocks() if b.name == "layer1.0")
    assert [layer.activation is not None for layer in block.layers] == [True, False]
    assert adapter.blocks()[0].activation is adapter.model.relu


def head():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


class ReadTwice(nn.Module):
    """A unit whose layer's own output is read beside that of what is behind it."""

    def __init__(self, behind):
        super().__init__()
        self.conv, self.behind, self.last = (
            nn.Conv2d(4, 4, 3, padding=1),
            behind,
            nn.Conv2d(4, 5, 1),
        )

    def forward(self, x):
        """Return logits."""
        y = self.conv(x)
        return self.last(self.behind(y) + y).mean((2, 3))


def test_an_activation_function_is_no_layers_whose_own_output_is_read_too():
    """The unit's loss would look through it at a part of what the layer gives."""
    alone = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), head())
    twice = nn.Sequential(nn.Conv2d(4, 4, 1), ReadTwice(nn.ReLU()))
    first, second = (
        VisionAdapter(net, torch.randn(2, 4, 8, 8), None, CPU).blocks() for net in (alone, twice)
    )
    assert first[0].activation is alone[1]
    assert [block.name for block in second] == ["0", "1.conv", "1.last"]
    assert second[1].activation is None


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_batch_norm_is_folded_into_no_layer_whose_own_output_is_read_too(scale):
    """However small the network's outputs are: it stays the scale and shift that it is."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).eval()
    for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        values.uniform_(0.5, 2)
    net = ReadTwice(norm).eval()
    net.last.weight.data *= scale
    net.last.bias.data *= scale
    given = torch.randn(2, 4, 8, 8)
    expected = net(given)
    fold_batch_norm(net, given)
    assert isinstance(net.behind, nn.BatchNorm2d)
    torch.testing.assert_close(net(given), expected, rtol=1e-5, atol=1e-5 * scale)


def test_a_fold_that_changes_small_outputs_is_refused():
    """A BatchNorm that is used again where no convolution feeds it is lost there."""

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head()
            self.norm.running_mean.fill_(1.0)

        def forward(self, x):
            """Return logits."""
            return 1e-4 * self.head(self.norm(self.norm(self.conv(x)).relu()))

    with pytest.raises(ValueError, match="folding BatchNorm changed the model's output"):
        fold_batch_norm(Again().eval(), images())


def test_channels_of_a_sequence_are_its_second_axis_as_those_of_an_image():
    """A Conv1d is the Conv2d of a single row: its loss sums over channels, not over length."""
    one = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14, 5))
    two = nn.Sequential(nn.Conv2d(4, 8, (1, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14, 5))
    for net, given in ((one, torch.randn(2, 4, 16)), (two, torch.randn(2, 4, 1, 16))):
        assert [b.channel_dim for b in VisionAdapter(net, given, None, CPU).blocks()] == [1, -1]


@pytest.mark.parametrize(("library", "name"), COUNTS, ids=[name for _, name in COUNTS])
def test_folding_leaves_the_outputs_and_no_batch_norm(library, name):
    net = network(library, name)
    expected = net(images()).detach()
    fold_batch_norm(net, images())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(net(images()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("library", "name"), COUNTS, ids=[name for _, name in COUNTS])
def test_the_chain_gives_each_block_its_true_input(library, name):
    """Walking the blocks one after the other is the model's own forward pass."""
    adapter = VisionAdapter(network(library, name), images(), 8, CPU)
    batch = images(5)
    stream = adapter.record_calls([batch])
    for index, block in enumerate(adapter.blocks()):
        outputs = stream.replay_all(block.module, 3, CPU)
        if index + 1 < len(adapter.blocks()):
            stream = stream.with_inputs(adapter.advance(index, outputs))
    torch.testing.assert_close(outputs, adapter.forward(batch), rtol=1e-4, atol=1e-4)


class Counting(nn.Module):
    """A chain that reshapes by the number of images it was given, and may skip a layer as well."""

    def __init__(self, skipping=False):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 5)
        self.skipping = skipping

    def forward(self, x):
        """Return logits."""
        count, channels = len(x), 6
        y = self.a(x).relu().view(count, channels, 62, 62)
        z = self.b(y).view(count, channels, -1).mean(2)
        return self.head(z + y.view(count, channels, -1).mean(2) if self.skipping else z)


def test_a_chain_may_read_the_number_of_its_images():
    adapter = VisionAdapter(Counting(), images(), None, CPU)
    batch = images(5)
    stream = adapter.record_calls([batch])
    for index, block in enumerate(adapter.blocks()):
        outputs = stream.replay_all(block.module, 3, CPU)
        if index < 2:
            stream = stream.with_inputs(adapter.advance(index, outputs))
    torch.testing.assert_close(outputs, adapter.forward(batch), rtol=1e-4, atol=1e-4)


def test_a_skip_is_seen_where_the_number_of_images_is_read():
    with pytest.raises(ValueError, match="block head needs more than the output of b"):
        VisionAdapter(Counting(skipping=True), images(), None, CPU)


def test_a_network_that_is_no_chain_is_refused():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            """Return logits."""
            first = self.a(x)
            return (self.c(self.b(first) + first)).mean((2, 3))

    with pytest.raises(ValueError, match="block c needs more than the output of b"):
        VisionAdapter(Skipping(), images(), None, CPU)


def test_a_layer_used_twice_is_refused():
    class FullPrecision(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            """Return logits."""
            return self.a(self.a(x)).mean((2, 3))

    with pytest.raises(ValueError, match="layer a is used twice"):
        VisionAdapter(FullPrecision(), images(), None, CPU)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_an_unknown_architecture_is_refused(library):
    with pytest.raises(ValueError, match=f"model.name=resnet19: {library} has no such model"):
        VisionModel(library, "resnet19", None, 8, False, False, []).build(10)


def test_weights_are_left_by_name_and_the_share_says_so():
    class Gated(nn.Module):
        """A kernel that no layer holds, and two layers that do."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
            self.mix = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            """Return logits [batch, 5]."""
            return self.last(self.first(x).mean((2, 3)) @ self.mix)

    example = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"mix \[4, 4\].*model.leave=\[mix\]"):
        VisionAdapter(Gated(), example, 8, torch.device("cpu"))
    adapter = VisionAdapter(Gated(), example, 8, torch.device("cpu"), ["mix", "first"])
    assert list(adapter.layers()) == ["last"]
    coverage = adapter.coverage()
    assert (coverage.quantized, coverage.total) == (20, 20 + 4 * 27 + 16)
    assert coverage.left == ("first.weight", "mix")

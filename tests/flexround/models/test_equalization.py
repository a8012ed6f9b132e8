"""Cross-layer equalisation and absorption of biases leave the full-precision network as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from flexround.models.batch_norm import fold_batch_norm
from flexround.models.equalization import absorb, absorb_biases, equalize, find_pairs, replace_relu6
from flexround.models.tracing import trace


class Inverted(nn.Module):
    """Expansion, depthwise convolution and projection, with a skip."""

    def __init__(self, bias=True):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12, affine=bias), nn.ReLU6(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4),
        )  # fmt: skip

    def forward(self, x):
        """Return x + conv(x)."""
        return x + self.conv(x)


def network(bias=True):
    torch.manual_seed(0)
    net = Inverted(bias).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    replace_relu6(net)
    return net.requires_grad_(False)


IMAGES = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))


def test_equalised_ranges_meet_and_the_output_stays():
    net = network()
    expected = net(IMAGES)
    equalize(net, IMAGES, fold_batch_norm(net, IMAGES))
    torch.testing.assert_close(net(IMAGES), expected, rtol=1e-4, atol=1e-4)
    (expand, depthwise), (again, project) = find_pairs(trace(net, IMAGES))
    assert again is depthwise
    for first, second in ((expand, depthwise), (depthwise, project)):
        own = first.weight.abs().amax(dim=(1, 2, 3))
        other = second.weight.abs().amax(dim=(1, 2, 3) if second.groups > 1 else (0, 2, 3))
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-4)


def test_a_relu_that_serves_several_places_stands_between_each_pair():
    """A bottleneck of ResNet-50 calls one ReLU in place three times."""
    torch.manual_seed(0)
    net = Bottleneck(8, 2).eval().requires_grad_(False)
    images = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    statistics = fold_batch_norm(net, images)
    assert find_pairs(trace(net, images)) == [(net.conv1, net.conv2), (net.conv2, net.conv3)]
    expected = net(images.clone())
    equalize(net, images, statistics)
    torch.testing.assert_close(net(images.clone()), expected, rtol=1e-4, atol=1e-4)


def test_relu6_is_not_equalised():
    net = network()
    net.conv[2], net.conv[5] = nn.ReLU6(), nn.ReLU6()
    with pytest.raises(ValueError, match="no two convolutions with only a ReLU between them"):
        equalize(net, IMAGES, fold_batch_norm(net, IMAGES))


def test_absorbed_biases_change_nothing_where_the_mathematics_says_so():
    torch.manual_seed(0)
    first, second = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 3, 1)
    both = nn.Sequential(first, nn.ReLU(), second).requires_grad_(False)
    mean = torch.tensor([5.0, 7.0, 9.0, -1.0, 0.5, 6.0])
    # Pre-activations within 3 deviations of their mean.
    images = torch.rand(8, 4, 5, 5)
    first.bias[:] = 0
    first.weight /= first.weight.abs().sum(dim=1, keepdim=True)  # |weight * images| < 1
    first.bias[:] = mean
    expected = both(images)
    absorb(first, second, mean, torch.full((6,), 1 / 3))
    assert (first.bias - mean).tolist()[3] == 0, "a mean below 0 leaves nothing to absorb"
    torch.testing.assert_close(first.bias[0].item(), 1.0)
    torch.testing.assert_close(both(images), expected)


def test_a_depthwise_layer_absorbs_channel_by_channel():
    torch.manual_seed(0)
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4)
    both = nn.Sequential(first, nn.ReLU(), second).requires_grad_(False)
    first.bias[:] = 10
    images = torch.rand(2, 4, 6, 6)
    expected = both(images)
    absorb(first, second, first.bias.clone(), torch.ones(4))
    torch.testing.assert_close(both(images), expected)


def test_statistics_move_with_the_scales():
    net = network()
    statistics = fold_batch_norm(net, IMAGES)
    expand = next(iter(statistics))
    seen = []
    expand.register_forward_hook(lambda _, __, out: seen.append(out))
    net(IMAGES)
    before = statistics[expand].mean.clone()
    equalize(net, IMAGES, statistics)
    net(IMAGES)
    torch.testing.assert_close(
        seen[-1] * (before / statistics[expand].mean)[:, None, None], seen[0], rtol=1e-3, atol=1e-4
    )


def test_without_statistics_nothing_is_absorbed():
    net = network()
    with pytest.raises(ValueError, match="absorb_biases=true needs BatchNorm's statistics"):
        absorb_biases(net, IMAGES, {})
    biases = [m.bias for m in (net.conv[0], net.conv[3])]
    assert biases == [None, None]
    absorb_biases(net, IMAGES, fold_batch_norm(net, IMAGES))
    assert all(m.bias is not None for m in (net.conv[0], net.conv[3]))

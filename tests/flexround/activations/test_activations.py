"""Activation quantizers, their sites, and the settings that learn their step sizes."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from flexround.activations.hooks import Activations
from flexround.activations.quantizers import TensorQuantizer, TokenQuantizer
from flexround.activations.schemes import DynamicPerToken, StaticPerTensor
from flexround.grid import Grid, PerTensor
from flexround.kernels.fake_quantize import traceable_fake_quantize
from flexround.kernels.qdrop import DroppedFakeQuantize, mask, mix
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.vision import VisionAdapter
from flexround.ranges import LpSearch, MinMax
from flexround.reconstruction.callbacks import ReportLog
from tests.conftest import TINY
from tests.flexround.models.test_language import EXAMPLE, network
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import (
    CPU,
    RANGES,
    SETTING,
    adapter,
    calibration,
)

STATIC = StaticPerTensor(
    4, True, stem_bits=8, head_bits=8, kv_bits=None, init_samples=8, ranges_from="quant"
)
BRECQ = replace(SETTING, act_steps="after", act_iters=60, act_lr=1e-3)
QDROP = replace(SETTING, act_steps="together", inputs="mixed", act_lr=1e-3)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_step_sizes_gradient_is_lsqs(symmetric, signed, keep):
    x = torch.randn(4, 5, 6, dtype=torch.float64, generator=draws())
    x = x if signed else x.abs()
    quantizer = TensorQuantizer("a", 3, symmetric, MinMax())
    quantizer(x, 1.0, draws())
    quantizer.double()
    with torch.no_grad():
        quantizer.scale /= 2  # so that some values are outside
    scale, zero = quantizer.scale.item(), quantizer.zero_point.item()
    low, high = (-4, 3) if symmetric and signed else (0 - zero, 7 - zero)
    x[0, 0] = torch.tensor([low, high, low - 1.0, high + 1.0, 0.0, 0.25]) * scale
    x.requires_grad_(True)
    weight = torch.randn(x.shape, dtype=torch.float64, generator=draws(1))
    steps = (x / scale).detach()
    level = torch.round(steps)
    inside = (level >= low) & (level <= high)
    # LSQ eq. 3: round(x/s) - x/s inside the range, its bound outside; x passes inside only.
    wanted = torch.where(inside, level - steps, level.clamp(low, high))
    # The same draws tell which elements are kept; the others pass x on and say nothing of s.
    kept = mask(x.detach(), keep, draws(2)).bool()
    (quantizer(x, keep, draws(2)) * weight).sum().backward()
    torch.testing.assert_close(quantizer.scale.grad, (wanted * weight * kept).sum())
    torch.testing.assert_close(x.grad, weight * (inside | ~kept))
    assert inside[0, 0].tolist() == [True, True, False, False, True, True]


class Alone(nn.Module):
    """A quantizer as a network of its own."""

    def __init__(self, quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x):
        """Return x quantized."""
        return self.quantizer(x, 1.0, draws())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [lambda: TensorQuantizer("a", 3, True, MinMax()),
     lambda: TensorQuantizer("a", 8, False, MinMax()), lambda: TokenQuantizer("a", 4)],
    ids=["symmetric", "asymmetric", "token"],
)  # fmt: skip
def test_torch_export_holds_what_a_quantizer_computes(make, dtype):
    alone, x = Alone(make()), torch.randn(4, 5, 6, generator=draws()).to(dtype)
    alone(x[:2] / 2)  # so that some values are outside of a tensor's range
    x[0, 0, :2] = torch.tensor([1e4, -torch.inf])
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(alone, (x[:2],), dynamic_shapes=batch).module()
    torch.testing.assert_close(program(x), alone(x), rtol=0, atol=0, equal_nan=True)


def test_what_can_be_exported_has_the_same_gradients():
    steps = torch.tensor([-9, -4.4, -4, -3.2, 0.3, 1.5, 2.9, 3, 3.4, 9])
    weight = torch.arange(1.0, 11)
    scale, low, high = (torch.tensor(value) for value in (0.5, -4.0, 3.0))
    found = []
    for function in (DroppedFakeQuantize.apply, traceable_fake_quantize):
        x, s = (steps * scale).requires_grad_(True), scale.clone().requires_grad_(True)
        own = (1.0, draws()) if function == DroppedFakeQuantize.apply else ()
        (function(x, s, low, high, *own) * weight).sum().backward()
        found.append((x.grad, s.grad))
    torch.testing.assert_close(*found)


@torch.no_grad()
def test_torch_export_of_a_network_answers_as_the_network():
    target = adapter()
    SETTING(
        target, calibration(), quantizer=METHODS["rtn"], grid=Grid(8, True, PerTensor()),
        ranges=RANGES, activation=STATIC, generator=draws(),
    )  # fmt: skip
    images = torch.randn(64, 3, 8, 8, generator=draws(3))
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(target.model, (images[:2],), dynamic_shapes=dynamic)
    found = program.module()(images)
    assert len(found.unique(dim=0)) == len(images)
    assert torch.equal(found, target.model(images))


def test_values_that_are_never_negative_use_all_codes():
    x = torch.rand(1000, generator=draws())
    quantizer = TensorQuantizer("a", 2, True, MinMax())
    assert len(quantizer(x, 1.0, draws()).unique()) == 4
    assert TensorQuantizer("b", 2, True, MinMax())(x - 0.5, 1.0, draws()).min() < 0


@pytest.mark.parametrize("ranges", [MinMax(), LpSearch(2.4, 80, 0.01)])
def test_a_constant_or_dead_activation_stays_finite(ranges):
    for value in (0.0, 3.0, -3.0):
        out = TensorQuantizer("a", 4, True, ranges)(torch.full((10,), value), 1.0, draws())
        torch.testing.assert_close(out, torch.full((10,), value), rtol=0.07, atol=1e-6)


def test_a_step_size_that_crosses_zero_is_reflected():
    """As in QDrop's LSQFakeQuantize, whose forward pass takes its absolute value first."""
    quantizer = TensorQuantizer("a", 8, True, MinMax())
    quantizer(torch.linspace(0, 0.5, 100), 1.0, draws())
    with torch.no_grad():
        quantizer.scale.fill_(-2e-3)
    quantizer.after_step()
    assert quantizer.scale.item() == pytest.approx(2e-3)


@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_keep_is_the_probability_of_staying_quantized(keep):
    quantized, plain = torch.ones(100_000), torch.zeros(100_000)
    share = mix(quantized, plain, keep, draws()).mean().item()
    assert share == pytest.approx(keep, abs=0.01)


def test_dropping_is_element_wise_and_off_when_all_is_kept():
    quantized, plain = torch.ones(64, 64), torch.zeros(64, 64)
    kept = mix(quantized, plain, 0.5, draws())
    assert 0 < kept[0].mean() < 1
    assert torch.equal(mix(quantized, plain, 1.0, draws()), quantized)


def test_each_token_has_its_own_asymmetric_range():
    x = torch.randn(2, 3, 16, generator=draws()) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    out = TokenQuantizer("a", 8)(x, 1.0, draws())
    for token, quantized in zip(x.reshape(-1, 16), out.reshape(-1, 16), strict=True):
        step = (token.max() - token.min()) / 255
        assert (quantized - token).abs().max() <= step / 2 + 1e-6
        assert len(quantized.unique()) <= 256


# By hand: ResNet-18 has a stem and two ReLUs in each of 8 blocks; ResNet-50 a stem and three in
# each of 16; MobileNetV2 a stem, 2 in its first block, 3 in each of 16, and the last layer's.
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 1 + 8 * 2), ("resnet50", 1 + 16 * 3), ("mobilenet_v2", 1 + 2 + 16 * 3 + 1)],
)
def test_the_number_of_sites_of_a_classifier(name, count):
    model = torchvision.models.get_model(name).eval()
    blocks = VisionAdapter(model, torch.randn(2, 3, 32, 32), 8, CPU).blocks()
    sites = [site for block in blocks for site in block.sites]
    assert len(sites) == len({site.name for site in sites}) == count
    assert [site.role for site in sites if site.role != "inner"] == ["stem", "head"]
    assert (sites[0].role, sites[-1].role) == ("stem", "head")
    assert not blocks[-1].sites, "logits stay as they are"


def test_of_a_first_block_with_several_activations_the_first_alone_is_the_stem():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 5),
    ).eval()  # fmt: skip
    adapter = VisionAdapter(net, torch.randn(2, 3, 16, 16), 8, CPU, units=["0"])
    sites = [site for block in adapter.blocks() for site in block.sites]
    assert len(adapter.blocks()[0].sites) == 2
    assert [site.role for site in sites] == ["stem", *["inner"] * (len(sites) - 2), "head"]


# By hand: the inputs of attention (query, key and value share it), of its output projection, of
# the feed-forward part's first layers (gate and up share it) and of its last.
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "opt", "llama", "bert"])
def test_the_number_of_sites_of_a_transformer_layer(family):
    for block in LanguageAdapter(network(family), EXAMPLE, CPU).blocks():
        inputs = [site for site in block.sites if site.side == "input"]
        assert len(inputs) == 4
        shared = {"gpt2": 1, "gpt_neo": 3, "opt": 3, "llama": 3, "bert": 3}[family]
        assert len(inputs[0].modules) == shared
        keys_and_values = [site for site in block.sites if site.role == "kv"]
        assert len(keys_and_values) == (0 if family in ("gpt2", "bert") else 2)


def quantized(setting, method="flexround", activation=STATIC, seed=0, ranges=RANGES):
    target, log = adapter(), ReportLog()
    setting(
        target, calibration(32), quantizer=METHODS[method], grid=Grid(3, True, PerTensor()),
        ranges=ranges, generator=draws(seed), activation=activation, callbacks=[log],
    )  # fmt: skip
    return target, log.blocks


def test_two_uses_of_one_relu_learn_two_steps():
    target = adapter()
    activations = Activations(target.blocks(), STATIC, RANGES, draws())
    with activations.on():
        target.forward(calibration(8)[0])
    first, second = activations.of("2")
    assert (first.name, second.name) == ("2.relu.output.0", "2.relu.output.1")
    assert first.scale.item() != second.scale.item()


def test_one_relu_of_several_blocks_has_a_quantizer_in_each():
    relu = nn.ReLU()
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), relu, nn.Conv2d(6, 6, 3), relu, nn.Flatten(), nn.Linear(96, 4)
    )
    target = VisionAdapter(net, torch.randn(2, 3, 8, 8), 8, CPU)
    names = [[site.role for site in block.sites] for block in target.blocks()]
    assert names == [["stem"], ["head"], []]
    activations = Activations(target.blocks(), replace(STATIC, head_bits=2), RANGES, draws())
    seen = []
    relu.register_forward_hook(lambda _, __, out: seen.append(len(out.unique())))
    with activations.on():
        target.forward(calibration(8)[0])
    (stem,), (head,) = activations.of("0"), activations.of("2")
    assert (stem.bits, head.bits) == (8, 2)
    assert seen[0] > 4 >= seen[1], "each in its own place"


def shared_relu():
    """Return a network whose blocks' one function is called where each of them has ended."""
    relu = nn.ReLU()
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), relu, nn.Conv2d(6, 6, 3), relu, nn.Flatten(), nn.Linear(96, 4)
    )
    return VisionAdapter(net, torch.randn(2, 3, 8, 8), 8, CPU)


def images_of_eight():
    return calibration(8)[0].clone()


PASSES = {
    "residual": (adapter, images_of_eight),
    "shared_function": (shared_relu, images_of_eight),
    "llama": (
        lambda: LanguageAdapter(network("llama"), EXAMPLE, CPU),
        lambda: {"input_ids": torch.randint(0, 50, (4, 6), generator=draws())},
    ),
}


@pytest.mark.parametrize("case", PASSES)
def test_once_a_pass_has_ended_nothing_of_it_stays(case):
    make, batch = PASSES[case]
    target = make()
    activations = Activations(target.blocks(), STATIC, RANGES, draws())
    activations.leave_on()
    seen = []
    for layer in target.layers().values():
        layer.module.register_forward_hook(lambda _, args, out: seen.extend(map(weakref.ref, args)))
        layer.module.register_forward_hook(lambda _, args, out: seen.append(weakref.ref(out)))
    for _ in range(2):  # the first sets the ranges
        target.forward(batch())
    gc.collect()
    assert len(seen) == 2 * 2 * len(target.layers())
    assert all(ref() is None for ref in seen)


def test_queries_keys_and_values_take_one_quantized_tensor():
    """Each quantized by itself, its elements would be dropped by other draws."""
    target = LanguageAdapter(network("llama"), EXAMPLE, CPU)
    activations = Activations(target.blocks(), STATIC, RANGES, draws())
    attention, taken = target.model.model.layers[1].self_attn, []
    for module in (attention.q_proj, attention.k_proj, attention.v_proj):
        module.register_forward_hook(lambda _, args, __: taken.append(args[0]))
    with activations.on(0.5):
        target.forward({"input_ids": torch.randint(0, 50, (4, 6), generator=draws())})
    assert taken[0] is taken[1] is taken[2]


def saved_and_read(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("other", [copy.deepcopy, saved_and_read])
def test_a_copy_of_the_network_has_its_activations_quantized(other):
    target, images = adapter(), calibration(8)[0]
    plain = target.model(images)
    activations = Activations(target.blocks(), STATIC, RANGES, draws())
    activations.leave_on()
    expected = target.model(images)
    assert not torch.equal(expected, plain)
    assert torch.equal(other(target.model)(images), expected)


@pytest.mark.parametrize("setting", [SETTING, BRECQ, QDROP], ids=["block", "brecq", "qdrop"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(setting, dtype):
    target = LanguageAdapter(network("llama", dtype), EXAMPLE, CPU)
    activation = StaticPerTensor(8, False, 8, 8, kv_bits=8, init_samples=2, ranges_from="quant")
    batch = {"input_ids": torch.randint(0, 50, (4, 6), generator=draws())}
    replace(setting, batch_size=2, iters=2, act_iters=2)(
        target, [batch], quantizer=METHODS["flexround"], grid=Grid(8, False, PerTensor()),
        ranges=MinMax(), generator=draws(), activation=activation,
    )  # fmt: skip
    assert {p.dtype for p in target.model.parameters()} == {dtype}
    with torch.inference_mode():
        assert target.forward(batch).dtype == dtype


def test_the_step_sizes_gradient_keeps_its_digits_in_float32():
    x = torch.randn(1 << 17, generator=draws()) + 5
    upstream = torch.randn(1 << 17, generator=draws(1)) + 1
    quantizer = TensorQuantizer("a", 8, False, MinMax())
    quantizer(x, 1.0, draws())
    (quantizer(x, 1.0, draws()) * upstream).sum().backward()
    steps = x.double() / quantizer.scale.detach().double()
    exact = ((steps.round() - steps) * upstream.double()).sum()
    assert quantizer.scale.grad.item() == pytest.approx(exact.item(), rel=1e-2)


def test_off_the_model_computes_as_it_is():
    target, images = adapter(), calibration(8)[0]
    before = target.forward(images)
    activations = Activations(target.blocks(), STATIC, RANGES, draws())
    assert torch.equal(target.forward(images), before)
    with activations.on():
        assert not torch.equal(target.forward(images), before)
    assert torch.equal(target.forward(images), before)


@pytest.mark.parametrize("setting", [SETTING, BRECQ, QDROP], ids=["block", "brecq", "qdrop"])
@pytest.mark.parametrize("method", ["adaround", "adaquant", "flexround"])
def test_every_setting_lowers_the_error_and_evaluates_the_same_twice(setting, method):
    target, reports = quantized(setting, method)
    units = [r for r in reports if "activations" not in r.name]
    assert sum(r.error_after for r in units) < sum(r.error_before for r in units)
    assert any("activations" in r.name for r in reports) == (setting is not QDROP)
    images = calibration(8)[0]
    out = target.forward(images)
    assert torch.equal(out, target.forward(images))
    again, _ = quantized(setting, method)
    assert torch.equal(out, again.forward(images)), "the same seed gives the same model"
    assert all(type(m).__name__ != "ParametrizedConv2d" for m in target.model.modules())


class Wide:
    """Ranges twice as wide as the values."""

    def __call__(self, values, grid):
        """Return (scale, zero_point)."""
        scale, zero_point = MinMax()(values, grid)
        return 2 * scale, zero_point


def test_the_second_pass_learns_steps_that_start_too_wide():
    activation = replace(STATIC, bits=3)
    setting = replace(BRECQ, iters=1, act_lr=3e-3)
    _, reports = quantized(setting, "flexround", activation, ranges=Wide())
    steps = [r for r in reports if "activations" in r.name]
    report = steps[1]  # the first residual block: later ones also carry the prefix's error
    assert report.error_after < 0.8 * report.error_before


def test_round_to_nearest_is_one_model_in_every_setting():
    images = calibration(8)[0]
    settings = (SETTING, BRECQ, QDROP, replace(SETTING, iters=0))
    outs = [quantized(s, "rtn")[0].forward(images) for s in settings]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[3])
    torch.testing.assert_close(outs[0], outs[2])


def test_every_activation_has_at_most_its_codes():
    target, _ = quantized(BRECQ, "rtn")
    seen = {}
    for name, module in target.model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    target.forward(calibration(8)[0])
    assert len(seen["2.relu"].unique()) <= 16
    assert 16 < len(seen["3.relu"].unique()) <= 256, "the last layer's input keeps 8 bit"
    assert 16 < len(seen["1"].unique()) <= 256, "and the first layer's output"


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert"])
def test_transformers_quantize_the_inputs_of_their_layers_alone(family):
    target = LanguageAdapter(network(family), EXAMPLE, CPU)
    activation = StaticPerTensor(8, False, 8, 8, kv_bits=None, init_samples=2, ranges_from="quant")
    setting = replace(QDROP, batch_size=2, iters=4)
    batch = {"input_ids": torch.randint(0, 50, (4, 6), generator=draws())}
    before = target.forward(batch)
    setting(
        target, [batch], quantizer=METHODS["flexround"], grid=Grid(8, False, PerTensor()),
        ranges=MinMax(), generator=draws(), activation=activation,
    )  # fmt: skip
    after = target.forward(batch)
    assert 0 < (after - before).abs().max() < 0.2 * before.abs().max()


def test_tokens_are_quantized_without_calibration_and_keys_and_values_too():
    batch = {"input_ids": torch.randint(0, 50, (4, 6), generator=draws())}
    outs = []
    for kv_bits in (None, 2):
        target = LanguageAdapter(network("llama"), EXAMPLE, CPU)
        setting = replace(SETTING, iters=0, batch_size=2)
        setting(
            target, [batch], quantizer=METHODS["rtn"], grid=Grid(8, False, PerTensor()),
            ranges=MinMax(), generator=draws(), activation=DynamicPerToken(8, kv_bits),
        )  # fmt: skip
        outs.append(target.forward(batch))
    assert not torch.allclose(outs[0], outs[1], atol=1e-3), "2-bit keys and values show"


@pytest.mark.parametrize("leave", [["*.k_proj"], ["self_attn.v_proj"], ["self_attn"]])
def test_a_weight_left_in_full_precision_leaves_the_cache_quantized(leave):
    target = LanguageAdapter(network("llama"), EXAMPLE, CPU, leave)
    batch = {"input_ids": torch.randint(0, 50, (4, 6), generator=draws())}
    replace(SETTING, iters=0, batch_size=2)(
        target, [batch], quantizer=METHODS["rtn"], grid=Grid(8, False, PerTensor()),
        ranges=MinMax(), generator=draws(), activation=DynamicPerToken(8, 2),
    )  # fmt: skip
    seen = []
    for layer in target.model.model.layers:
        for module in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            module.register_forward_hook(lambda _, __, out: seen.append(out))
    target.forward(batch)
    assert len(seen) == 4
    for token in torch.cat([out.flatten(0, 1) for out in seen]):
        assert len(token.unique()) <= 4


def test_an_activation_that_is_not_finite_is_named():
    target = adapter()
    target.model[0].bias = nn.Parameter(torch.full((6,), torch.inf), requires_grad=False)
    activations = Activations(target.blocks(), STATIC, RANGES, draws())
    message = r"activation 1.output: it holds values that are not finite"
    with activations.on(), pytest.raises(ValueError, match=message):
        target.forward(calibration(8)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: StaticPerTensor(9, True, 8, 8, None, 1, "quant"), "act_bits=9"),
     (lambda: StaticPerTensor(4, True, 8, 8, None, 0, "quant"), "init_samples=0"),
     (lambda: DynamicPerToken(8, 1), "kv_bits=1"),
     (lambda: replace(QDROP, unit="layer"), "recon.unit=layer with recon.act_steps=together"),
     (lambda: replace(QDROP, quant_prob=0.0), "recon.quant_prob=0.0"),
     (lambda: replace(QDROP, act_lr=0.0), "recon.act_lr=0.0"),
     (lambda: quantized(BRECQ, activation=DynamicPerToken(8, None)), "DynamicPerToken has none"),
     (lambda: quantized(SETTING, activation=DynamicPerToken(8, 8)), "is for transformers, whose"),
     (lambda: quantized(SETTING, activation=replace(STATIC, kv_bits=8)), "kv_bits=8: the model"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("args", "message"),
    [(["act_bits=4"], "act_bits=4 does nothing with the chosen activation"),
     (["activation=static_per_tensor", "recon=block", "recon.act_lr=1"], "recon.act_lr=1 does not"),
     (["activation=dynamic_per_token", "recon=qdrop"], "recon.act_steps=together learns"),
     (["activation=static_per_tensor", "act_bits=1"], "act_bits=1: give a whole number"),
     (["quant=signround", "recon.iters=0"], "recon.iters=0 leaves SignRound at round-to-nearest"),
     (["quant=lrq", "quant.rank=4"], "layer conv_stem: LRQ is for linear layers"),
     (["activation=static"], "available activation: dynamic_per_token, none, static_per_tensor")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, args, message):
    outcome = cli(*TINY, *args)
    assert outcome.status == 1
    assert message in outcome.err.splitlines()[-1]

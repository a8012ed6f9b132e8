"""AWQ's objective, recomputed from activations: the scales and limits found are never worse."""

from __future__ import annotations

import pytest
import torch

from flexround.calibration.calls import inputs_taken
from flexround.grid import Grid, PerChannel, PerGroup
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.structure import Layer
from flexround.transforms.awq import AWQ
from flexround.transforms.base import Calibration, apply
from tests.flexround.models.test_families import EXACT, SOLVER, adapter_of, tokens
from tests.flexround.transforms.test_transforms import calibration, made_uneven

GROUPS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.v_proj": ("self_attn.o_proj",),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}
BLOCK = "model.layers.1"


def nearest(weight, bits=3, group=16):
    """Return weight [out, in] rounded to nearest on asymmetric min-max ranges of its groups."""
    rows = weight.reshape(-1, group)
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = torch.round(-low / scale)
    codes = (torch.round(rows / scale) + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * scale).reshape(weight.shape)


def outliers(adapter):
    """Make some of the channels that a norm gives ten times as large as the others."""
    for block in adapter.blocks():
        block.module.input_layernorm.weight.data[::16] *= 10
        block.module.post_attention_layernorm.weight.data[3::16] *= 10
    return adapter


def inputs_of(adapter, names, batch):
    modules = [adapter.model.get_submodule(name) for name in names]
    taken = inputs_taken(modules, lambda: adapter.forward(batch))
    return taken[0][1][batch["attention_mask"].bool()]


def test_errors_are_the_papers_and_the_best_of_the_grid():
    adapter, batch = outliers(adapter_of("llama")), tokens(padded=True)
    names = [[f"{BLOCK}.{layer}" for layer in group] for group in GROUPS.values()]
    inputs = [inputs_of(adapter, group, batch) for group in names]
    weights = [[adapter.model.get_submodule(n).weight.clone() for n in group] for group in names]
    found = apply(AWQ(20, False, 10), adapter, calibration(batch))
    index = torch.arange(64) // 32 * 16 + torch.arange(64) % 16  # 2 query heads for a value head
    changed = 0
    for place, x, group in zip(GROUPS, inputs, weights, strict=True):
        mean = x.abs().mean(dim=0)
        if place == "self_attn.v_proj":  # the scale of a value channel serves two inputs
            shared = torch.zeros(32).index_add(0, index, mean) / 2
        else:
            shared = mean
        errors = []
        for step in range(20):
            s = shared ** (step / 20)
            s = s / (s.max() * s.min()).sqrt()
            s = s[index] if place == "self_attn.v_proj" else s
            parts = [((nearest(w * s) / s - w) @ x.T).pow(2).sum() / len(x) for w in group]
            errors.append(float(sum(parts)))
        first, last = found["errors"][f"{BLOCK}.{place}"]
        exponent = found["exponents"][f"{BLOCK}.{place}"]
        assert first == pytest.approx(errors[0], rel=1e-3)
        assert last == pytest.approx(min(errors), rel=1e-3)
        assert errors[round(20 * exponent)] == pytest.approx(min(errors), rel=1e-3)
        assert last <= first
        changed += last < 0.9 * first
    assert changed >= 2  # both norms give outliers


def quantized(name, adapter, batch, grid):
    options = dict(grid=grid, ranges=MinMax(), generator=torch.Generator().manual_seed(0))
    if name == "gptq":
        return Solve(2, True)(adapter, [batch], quantizer=SOLVER, **options)
    return Reconstruction(**EXACT | {"iters": 0})(adapter, [batch], quantizer=RTN, **options)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(16)], ids=["channel", "group"])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_is_cut_lowers_the_output_error_and_waits_for_the_quantizer(
    method, granularity, symmetric
):
    batch, grid = tokens(), Grid(2, symmetric, granularity)
    plain, clipped = (made_uneven(adapter_of("llama")) for _ in range(2))
    for adapter, clip in ((plain, False), (clipped, True)):
        apply(
            AWQ(5, clip, 10), adapter,
            Calibration([batch], 2, grid, calibration().cache, torch.Generator()),
        )  # fmt: skip
    own, other = clipped.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(own[key], other[key]) for key in own)
    layers = clipped.layers()
    cut = [n for n, layer in layers.items() if layer.limits is not None]
    assert len(cut) == 2 * 5  # all but queries and keys
    name = f"{BLOCK.replace('1', '0')}.mlp.gate_proj"
    weight = own[f"{name}.weight"].clone()
    x = inputs_taken([layers[name].module], lambda: clipped.forward(batch))[0][1].flatten(0, 1)
    integers = {a: quantized(method, a, batch, grid)[name] for a in (plain, clipped)}
    if method == "rtn":
        errors = [((integers[a].dequantize() - weight) @ x.T).norm() for a in (clipped, plain)]
        assert errors[0] < errors[1]
    widths = [integers[a].scale for a in (clipped, plain)]
    assert (widths[0] < 0.99 * widths[1]).any()


# By hand: the layers of a block that give queries or keys, fused with values in GPT-2 and Phi-3.
QUERIES_AND_KEYS = {
    "llama": {"q_proj", "k_proj"}, "gpt_neo": {"q_proj", "k_proj"}, "gpt2": {"c_attn"},
    "phi3": {"qkv_proj"},
}  # fmt: skip


@pytest.mark.parametrize("family", QUERIES_AND_KEYS)
def test_layers_that_give_queries_or_keys_are_not_cut(family):
    adapter = adapter_of(family)
    found = apply(AWQ(2, True, 2), adapter, calibration())
    layers = adapter.layers()
    whole = [name for name, layer in layers.items() if layer.limits is None]
    assert {name.split(".")[-1] for name in whole} == QUERIES_AND_KEYS[family]
    assert found["clipped"] == len(layers) - len(whole)
    assert len(whole) == 2 * len(QUERIES_AND_KEYS[family])


@pytest.mark.parametrize(
    ("name", "cut"),
    [("h.0.self_attention.query_key_value", False), ("layers.0.self_attn.W_pack", False),
     ("blocks.0.attn.Wqkv", False), ("layers.0.attn.v_proj", True),
     ("layers.0.mlp.monkey", True), ("layers.0.qkv.out", True)],
)  # fmt: skip
def test_the_last_part_of_a_name_as_a_whole_decides(name, cut):
    assert AWQ(2, True, 2)._clips(Layer(name, torch.nn.Linear(2, 2))) == cut
    assert not AWQ(2, False, 2)._clips(Layer(name, torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("options", [(0, True, 10), (20, True, 0), (20, True, 20)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"transform\."):
        AWQ(*options)

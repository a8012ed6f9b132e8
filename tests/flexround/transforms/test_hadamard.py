"""Hadamard matrices, and what a rotation of the residual stream does to outliers and tied heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flexround.calibration.calls import inputs_taken
from flexround.transforms.base import apply
from flexround.transforms.hadamard import Hadamard
from flexround.transforms.hadamard_matrices import (
    hadamard,
    is_known,
    keeping_mean,
    random_hadamard,
)
from flexround.transforms.stream_ends import Ends, _takes_mean, rotate_ends
from tests.flexround.models.test_families import adapter_of, network, tokens
from tests.flexround.transforms.test_transforms import calibration, made_uneven

# Widths of SmolLM2, GPT-2, Qwen2.5, LLaMA 13B and 33B, OPT and the heads of several.
WIDTHS = (1, 2, 12, 20, 28, 36, 64, 80, 96, 104, 128, 576, 768, 896, 960, 1152, 1280, 1600)


@pytest.mark.parametrize("size", WIDTHS)
def test_rows_are_of_plus_and_minus_one_and_orthogonal(size):
    matrix = hadamard(size)
    assert (matrix.abs() == 1).all()
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


def test_a_size_without_a_matrix_is_refused_with_those_that_work():
    with pytest.raises(ValueError, match=r"size 66 \(nearest are .*60, 64, 68, 72"):
        hadamard(66)
    assert not any(is_known(n) for n in range(3, 200) if n % 4)  # none of them exists


@pytest.mark.parametrize("size", [64, 576])
def test_rotations_are_orthogonal_spread_and_drawn_from_the_seed(size):
    rotations = [random_hadamard(size, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    eye = torch.eye(size, dtype=torch.float64)
    assert torch.equal(rotations[0], rotations[1])
    assert not torch.equal(rotations[0], rotations[2])
    torch.testing.assert_close(rotations[0].abs(), torch.full_like(eye, size**-0.5))
    for rotation in (rotations[0], keeping_mean(rotations[0])):
        torch.testing.assert_close(rotation @ rotation.T, eye, rtol=0, atol=1e-12)
    ones = torch.ones(size, dtype=torch.float64)
    torch.testing.assert_close(keeping_mean(rotations[0]) @ ones, ones, rtol=0, atol=1e-12)


def test_signs_are_turned_before_rows_are_mixed():
    """Each seed spreads a row in its own way, one of equal entries too, as QuaRot's D H does."""
    size, rows = 64, torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).double()
    rows[0] = 1  # H gathers it in one channel: its entries are all 0 but for one of sqrt(size)
    assert incoherence(rows[:1] @ hadamard(size)) == 8
    rotations = [random_hadamard(size, torch.Generator().manual_seed(s)) for s in range(5)]
    found = [(rows @ rotation).abs() for rotation in rotations]
    assert max(incoherence(magnitudes[:1]) for magnitudes in found) < 4
    for other in found[1:]:
        assert not torch.allclose(other, found[0])


def test_layer_norm_commutes_with_a_rotation_that_keeps_the_mean():
    rotation = keeping_mean(random_hadamard(64, torch.Generator().manual_seed(0)))
    norm = nn.LayerNorm(64, dtype=torch.float64)
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2
    torch.testing.assert_close(norm(x @ rotation), norm(x) @ rotation, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plain", [True, False])
def test_a_norm_is_told_from_one_that_keeps_the_mean_in_any_type(dtype, plain):
    layer, root = (kind(256).to(dtype) for kind in (nn.LayerNorm, nn.RMSNorm))
    if not plain:
        for norm in (layer, root):
            nn.init.uniform_(norm.weight, 0.5, 2)
    assert _takes_mean(layer)
    assert not _takes_mean(root)
    assert layer.weight.dtype == dtype


def incoherence(rows):
    """Return max|x| / rms(x), the mean over rows: sqrt(n) where one channel has everything."""
    return float((rows.abs().amax(-1) / rows.pow(2).mean(-1).sqrt()).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_outliers_of_the_stream_are_spread_over_all_channels(family):
    adapter, batch = adapter_of(family), tokens()
    embedding = adapter.model.get_input_embeddings()
    embedding.weight.data[:, 7] = 50 * embedding.weight.data.std()  # one channel of every token
    layers = [adapter.blocks()[0].layers[0].module]
    before = inputs_taken(layers, lambda: adapter.forward(batch))[0][1]
    apply(Hadamard(True), adapter, calibration(batch))
    after = inputs_taken(layers, lambda: adapter.forward(batch))[0][1]
    assert incoherence(before) > 6  # of at most 8
    assert incoherence(after) < 4
    weight = embedding.weight.data
    assert incoherence(weight) < 4


def test_a_tied_head_is_untied_and_the_cost_is_told():
    adapter = adapter_of("gpt2")
    model = adapter.model
    assert model.lm_head.weight is model.transformer.wte.weight
    found = apply(Hadamard(True), adapter, calibration())
    assert model.lm_head.weight.data_ptr() != model.transformer.wte.weight.data_ptr()
    assert found["untied_bytes"] == 1024 * 64 * 4
    assert model.config.tie_word_embeddings is False
    assert apply(Hadamard(True), adapter_of("llama"), calibration())["untied_bytes"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2's norm has a bias, its head none
def test_the_head_and_the_last_norm_are_rounded_once(family, dtype):
    """To what W diag(norm) Q and (bias / norm) Q are in float64."""
    adapter = made_uneven(adapter_of(family, dtype))
    model, draws = adapter.model, torch.Generator().manual_seed(3)
    rotation = keeping_mean(random_hadamard(64, draws))
    norm = model.model.norm if family == "llama" else model.transformer.ln_f
    scale, weight = norm.weight.double(), model.lm_head.weight.double()
    bias = None if family == "llama" else norm.bias.double()
    rotate_ends(adapter, Ends.of(adapter, tokens(), 64), rotation)
    assert torch.equal(model.lm_head.weight, ((weight * scale) @ rotation).to(dtype))
    assert torch.equal(norm.weight, torch.ones(64, dtype=dtype))
    if bias is not None:
        assert torch.equal(norm.bias, ((bias / scale) @ rotation).to(dtype))


def test_heads_are_turned_where_that_folds_and_only_if_asked():
    for family, heads in (("llama", 2), ("gpt2", 4), ("phi3", 2)):
        found = apply(Hadamard(True), adapter_of(family), calibration())
        assert found["turned_heads"] == 2 * heads, family  # in each of two layers
        assert apply(Hadamard(False), adapter_of(family), calibration())["turned_heads"] == 0


def test_values_are_turned_within_their_heads():
    """With the stream's own rotation undone, o_proj is W diag-of-blocks(R), head by head."""
    plain, turned = (adapter_of("llama") for _ in range(2))
    apply(Hadamard(False), plain, calibration())
    apply(Hadamard(True), turned, calibration())
    a, b = (x.model.model.layers[0].self_attn.o_proj.weight.double() for x in (plain, turned))
    change = [torch.linalg.lstsq(a[:, h], b[:, h]).solution for h in torch.arange(64).split(16)]
    for one in change:
        torch.testing.assert_close(one, change[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(one.abs(), torch.full_like(one, 0.25), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "heads", "told"),
    [
        ({"hidden_size": 72 * 2 + 4 * 11, "head_dim": 16}, True, "stream is 188 wide"),
        ({"head_dim": 18}, True, "heads are 18 wide.*transform.heads=false"),
    ],
)
def test_a_width_without_a_matrix_is_refused(changes, heads, told):
    from flexround.models.language_adapter import LanguageAdapter
    from tests.flexround.models.test_families import CPU, EXAMPLE

    adapter = LanguageAdapter(network("llama", **changes), EXAMPLE, CPU)
    with pytest.raises(ValueError, match=told):
        apply(Hadamard(heads), adapter, calibration())
    if "head_dim" in changes and "hidden_size" not in changes:
        apply(Hadamard(False), adapter, calibration())


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_norm_that_scales_what_goes_into_the_stream_is_refused(family):
    adapter = adapter_of(family)
    with pytest.raises(ValueError, match=r"layer model\.layers\.0\.post_attention_layernorm"):
        apply(Hadamard(True), adapter, calibration())

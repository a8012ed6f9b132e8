"""Transformers as chains of their layers, on random weights of every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel, PerTensor
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.reconstruction.unit import reconstruction_loss
from flexround.structure import Layer
from tasks.language.tiny_families import config_of
from tests.flexround.quantizers.methods import METHODS, granularities, symmetries, weight_of
from tests.flexround.reconstruction.test_reconstruction import SETTING

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

CPU = torch.device("cpu")
FAMILIES = ["gpt2", "gpt_neo", "opt", "llama", "bert"]
# Quantized layers of one block by hand: attention's projections and the feed-forward network's.
LAYERS = {"gpt2": 4, "gpt_neo": 6, "opt": 6, "llama": 7, "bert": 6}
EXAMPLE = {"input_ids": torch.arange(8).view(2, 4)}


def network(family, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = {"bert": transformers.AutoModelForSequenceClassification}
        auto = heads.get(family, transformers.AutoModelForCausalLM)
        model = auto.from_config(config_of(family))
    return model.to(dtype).eval()


def tokens(padding=None, n=6, length=12):
    ids = torch.randint(5, 1000, (n, length), generator=torch.Generator().manual_seed(1))
    if padding is None:
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    for row in range(1, n):
        part = slice(length - row, None) if padding == "right" else slice(0, row)
        mask[row, part] = 0
    return {"input_ids": ids, "attention_mask": mask}


def halves(batch):
    return [{k: v[i : i + 3] for k, v in batch.items()} for i in (0, 3)]


def test_tensors_of_a_block_keep_each_their_own_type():
    model = network("llama", torch.bfloat16)
    for layer in model.model.layers:  # as a router's correction of its scores is
        layer.mlp.register_buffer("correction", torch.tensor([1 + 1e-5]))  # bfloat16 has less
    before = {name: values.clone() for name, values in model.state_dict().items()}
    adapter = LanguageAdapter(model, EXAMPLE, CPU)
    for block in adapter.blocks():
        with adapter.on_device(block):
            assert {t.dtype for t in block.module.state_dict().values()} == {torch.float32}
    after = adapter.model.state_dict()
    for name, values in before.items():
        assert after[name].dtype == values.dtype, name
        assert torch.equal(after[name], values), name


def test_a_layer_that_is_called_twice_is_not_learned_by_itself():
    """It would be for its first call alone."""
    model = network("llama")
    attention = model.model.layers[1].self_attn
    attention.v_proj = attention.k_proj
    adapter = LanguageAdapter(model, EXAMPLE, CPU)
    loop = replace(SETTING, iters=2, batch_size=3, unit="layer")
    with pytest.raises(ValueError, match=r"recon.unit=layer: a Linear .* is called 2 times in"):
        loop(
            adapter, halves(tokens()), quantizer=METHODS["flexround"], ranges=MinMax(),
            grid=Grid(4, False, PerChannel()), generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_the_layers_and_nothing_else_is_quantized(family):
    adapter = LanguageAdapter(network(family), EXAMPLE, CPU)
    blocks = adapter.blocks()
    assert len(blocks) == 2
    assert [len(block.layers) for block in blocks] == [LAYERS[family]] * 2
    inside = {id(layer.module) for block in blocks for layer in block.layers}
    rest = [
        name for name, m in adapter.model.named_modules()
        if isinstance(m, nn.Linear | nn.Embedding) and id(m) not in inside
    ]  # fmt: skip
    plain = ("embed", "wte", "wpe", "lm_head", "pooler", "classifier")
    assert all(any(part in name for part in plain) for name in rest)
    assert all(layer.bits is None for block in blocks for layer in block.layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_replayed_calls_are_the_models_own_forward_pass(family, padding):
    model = network(family)
    adapter = LanguageAdapter(model, EXAMPLE, CPU)
    batch = tokens(padding)
    last, seen = adapter.blocks()[-1].module, []
    handle = last.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        adapter.forward(batch)
    handle.remove()
    expected = seen[0][0] if isinstance(seen[0], tuple) else seen[0]

    stream = adapter.record_calls(halves(batch))
    for index, block in enumerate(adapter.blocks()):
        outputs = stream.replay_all(block.module, 4, CPU)
        stream = stream.with_inputs(adapter.advance(index, outputs))
    mask = batch.get("attention_mask", torch.ones(6, 12)).bool()
    torch.testing.assert_close(outputs[mask], expected[mask])


def test_a_mask_that_only_some_batches_need_is_not_lost():
    """A mask of ones is left away by transformers; the padded batch's must not go with it."""
    adapter = LanguageAdapter(network("bert"), EXAMPLE, CPU)
    whole = tokens("right")
    whole["attention_mask"][:3] = 1
    with pytest.raises(ValueError, match="give the calibration samples as one batch"):
        adapter.record_calls(halves(whole))
    assert len(adapter.record_calls([whole])) == 6


def test_layers_come_in_execution_order():
    adapter = LanguageAdapter(network("llama"), EXAMPLE, CPU)
    names = [layer.name.rsplit(".", 1)[1] for layer in adapter.blocks()[0].layers]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@granularities
@symmetries
@pytest.mark.parametrize("name", METHODS)
def test_conv1d_has_the_codes_of_the_linear_of_its_transpose(name, granularity, symmetric):
    from transformers.pytorch_utils import Conv1D

    linear = weight_of(lambda: nn.Linear(24, 10))
    conv = Conv1D(10, 24)
    conv.weight.data = linear.weight.data.T.clone()
    grid = Grid(3, symmetric, granularity)
    codes = []
    for module in (linear, conv):
        unit = [Layer("it", module)]
        (quantizer,) = attach(unit, METHODS[name], grid, MinMax())
        torch.manual_seed(3)
        with torch.no_grad():
            for p in quantizer.parameters():
                p.add_(torch.rand_like(p) * 0.05)
        codes.append(freeze(unit)["it"])
    assert torch.equal(codes[0].codes, codes[1].codes)
    assert type(conv) is Conv1D
    assert torch.equal(conv.weight, linear.weight.T)
    assert torch.equal(conv.weight.T, codes[1].dequantize())


def test_padding_does_not_count_in_the_loss():
    out, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    rows = [((out[b, t] - target[b, t]) ** 2).sum() for b, t in [(0, 0), (0, 1), (1, 1), (1, 2)]]
    expected = torch.stack(rows).mean()
    torch.testing.assert_close(reconstruction_loss(out, target, -1, mask), expected)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_what_padding_holds_does_not_change_the_codes(padding):
    setting = Reconstruction(
        unit="block", iters=5, lr=5e-3, batch_size=3, schedule="constant", inputs="quant",
        act_steps="start", act_lr=1e-3, act_iters=0, act_inputs="quant",
        quant_prob=0.5, keep_best=False, precision="float32", compile=False,
    )  # fmt: skip
    results = []
    for filler in (7, 900):
        adapter = LanguageAdapter(network("llama"), EXAMPLE, CPU)
        batch = tokens(padding)
        batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"].bool(), filler)
        results.append(
            setting(
                adapter, halves(batch), quantizer=METHODS["flexround"],
                grid=Grid(3, False, PerChannel()), ranges=MinMax(),
                generator=torch.Generator().manual_seed(0),
            )
        )  # fmt: skip
    assert all(torch.equal(results[0][k].codes, results[1][k].codes) for k in results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_float32_and_cast_once(dtype):
    adapter = LanguageAdapter(network("llama", dtype), EXAMPLE, CPU)
    seen = []

    class Watch(ReportLog):
        """Notes the precision at work."""

        def step(self, unit, iteration, error):
            seen.append(adapter.model.get_submodule(unit).input_layernorm.weight.dtype)
            wide = [n for n, p in adapter.model.named_parameters() if p.dtype == torch.float32]
            assert all(name.startswith(f"{unit}.") for name in wide), "the rest keeps its own type"

    setting = Reconstruction(
        unit="block", iters=3, lr=1e-3, batch_size=3, schedule="constant", inputs="quant",
        act_steps="start", act_lr=1e-3, act_iters=0, act_inputs="quant",
        quant_prob=0.5, keep_best=False, precision="float32", compile=False,
    )  # fmt: skip
    codes = setting(
        adapter, halves(tokens()), quantizer=METHODS["flexround"],
        grid=Grid(4, False, PerTensor()), ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), callbacks=[Watch()],
    )  # fmt: skip
    assert set(seen) == {torch.float32}
    for name, integers in codes.items():
        weight = adapter.model.get_submodule(name).weight
        assert weight.dtype == dtype
        assert torch.equal(weight, integers.dequantize().to(dtype))


def test_a_model_without_layers_is_refused():
    class Flat(nn.Module):
        """One linear layer."""

        def __init__(self):
            super().__init__()
            self.config = transformers.LlamaConfig()
            self.linear = nn.Linear(4, 4)

    with pytest.raises(ValueError, match="Flat holds no list of like transformer layers"):
        LanguageAdapter(Flat(), EXAMPLE, CPU)

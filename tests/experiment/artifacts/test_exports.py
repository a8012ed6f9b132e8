"""Artifacts as other programs load them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import artifact
from experiment.artifacts import rebuild
from flexround.activations.schemes import DynamicPerToken, StaticPerTensor
from flexround.artifact.artifact import take
from flexround.artifact.exports import compressed_tensors, gptq
from flexround.artifact.exports.huggingface import change_of_scales, check_scales
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor, QuantizedTensor
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from tasks.language.tiny_families import SIZE, WIDTH
from tests.flexround.models.test_language import EXAMPLE, network, tokens
from tests.flexround.quantizers.methods import METHODS, symmetries
from tests.flexround.reconstruction.test_reconstruction import CPU, SETTING, adapter, calibration

pytest.importorskip("compressed_tensors", reason="the extra export is not installed")
transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

RTN = replace(SETTING, iters=0)
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(16)]
CHANNEL = Grid(4, False, PerChannel())
granularities = pytest.mark.parametrize("granularity", GRANULARITIES, ids=["tensor", "ch", "group"])


def shared_keys():
    """Return a DeBERTa, which sends words and then distances through the same projections."""
    config = transformers.DebertaV2Config(
        **SIZE, **WIDTH, intermediate_size=128, relative_attention=True, position_buckets=8,
        share_att_key=True, pos_att_type=["p2c", "c2p"], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def quantized(family, grid, activation=None, bits=MappingProxyType({}), dtype=torch.float32):
    """Return (adapter of a quantized model, its artifact)."""
    made = shared_keys() if family == "deberta" else network(family, dtype)
    target = LanguageAdapter(made, EXAMPLE, CPU)
    target.assign_bits(bits)
    integers = RTN(
        target, [tokens()], quantizer=METHODS["rtn"], grid=grid, ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), activation=activation,
    )  # fmt: skip
    return target, take(target, integers, {})


def exported(module, tmp_path, family, *settings, **options):
    """Return (adapter, artifact, folder that module has written)."""
    target, artifact = quantized(family, *settings, **options)
    folder = tmp_path / "artifact"
    folder.mkdir()
    target.model.config.save_pretrained(folder)
    module.export(artifact, target, folder, tmp_path / "out")
    return target, artifact, tmp_path / "out"


def loaded(folder, family="llama"):
    heads = dict.fromkeys(["bert", "deberta"], transformers.AutoModelForSequenceClassification)
    auto = heads.get(family, transformers.AutoModelForCausalLM)
    net, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return net.eval()


@torch.no_grad()
def logits(net, **options):
    return net(**tokens(**options)).logits


@pytest.mark.parametrize(
    ("bits", "granularity"),
    [(bits, PerChannel()) for bits in range(2, 9)]
    + [(bits, kind) for bits in (3, 4) for kind in (PerTensor(), PerGroup(16))],
    ids=str,
)
@symmetries
def test_transformers_computes_the_same_from_compressed_tensors(
    granularity, symmetric, bits, tmp_path
):
    grid = Grid(bits, symmetric, granularity)
    target, _, folder = exported(compressed_tensors, tmp_path, "llama", grid)
    assert torch.equal(logits(loaded(folder)), logits(target.model))


@symmetries
def test_transformers_computes_the_same_from_layers_of_several_bits(symmetric, tmp_path):
    grid, bits = Grid(4, symmetric, PerGroup(16)), {"*.down_proj": 8, "*.q_proj": 3}
    target, artifact, folder = exported(compressed_tensors, tmp_path, "llama", grid, None, bits)
    assert {layer.grid.bits for layer in artifact.layers.values()} == {3, 4, 8}
    assert torch.equal(logits(loaded(folder)), logits(target.model))


ACTIVATIONS = {
    "static": StaticPerTensor(8, False, 8, 8, None, 6, "quant"),
    "static_symmetric": StaticPerTensor(4, True, 4, 4, None, 6, "quant"),
    "dynamic": DynamicPerToken(8, None),
}


@pytest.mark.parametrize(
    ("bits", "symmetric", "form"),
    [(4, True, "pack-quantized"), (4, False, "int-quantized"), (8, True, "int-quantized")],
)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_it_quantizes_activations_too(activation, bits, symmetric, form, tmp_path):
    """W8A8 is in bytes, which vLLM's kernels take; so is what does not load when it is packed."""
    grid = Grid(bits, symmetric, PerChannel())
    target, _, folder = exported(compressed_tensors, tmp_path, "llama", grid, activation)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == form
    found, expected = logits(loaded(folder)), logits(target.model)
    plain, _ = quantized("llama", grid)
    effect = (logits(plain.model) - expected).abs().max()
    # Ties may fall otherwise: it rounds x / s + z, we x / s.
    assert (found - expected).abs().max() < 0.1 * effect


def told_of_scales(caplog):
    return [r.getMessage() for r in caplog.records if "scales" in r.getMessage()]


@pytest.mark.parametrize("activation", [None, ACTIVATIONS["static"]], ids=["weights", "static"])
def test_of_scales_that_fit_nothing_is_said(activation, tmp_path, caplog):
    exported(compressed_tensors, tmp_path, "llama", Grid(8, True, PerChannel()), activation)
    assert not told_of_scales(caplog)


@pytest.mark.parametrize("activation", [None, ACTIVATIONS["static"]], ids=["weights", "static"])
def test_scales_that_half_precision_rounds_are_told_of_in_one_line(activation, tmp_path, caplog):
    _, artifact, folder = exported(
        compressed_tensors, tmp_path, "llama", Grid(8, True, PerChannel()), activation,
        dtype=torch.bfloat16,
    )  # fmt: skip
    (line,) = told_of_scales(caplog)
    assert len(line.splitlines()) == 1
    stored = load_file(folder / "model.safetensors")
    pairs = [(stored[f"{n}.weight_scale"], q.scale) for n, q in artifact.layers.items()]
    if activation is not None:
        steps = {float(site.scale) for site in artifact.sites.values()}
        held = {float(t) for name, t in stored.items() if name.endswith("input_scale")}
        pairs += [
            (torch.tensor(min(held, key=lambda near, step=step: abs(near - step))),
             torch.tensor(step))
            for step in steps
        ]  # fmt: skip
    changes = [(kept.double() / exact.double() - 1).abs().max().item() for kept, exact in pairs]
    told = float(re.search(r"up to (\S+) of their size", line)[1])
    assert told == pytest.approx(max(changes), rel=1e-2)
    assert 1e-4 < told <= 2**-8, "half of bfloat16's last bit, of 8"


def test_a_change_of_scales_is_of_groups_that_hold_something():
    codes = torch.tensor([[0, 0], [1, -2], [3, 0]], dtype=torch.int16)
    scale = torch.tensor([[1.001], [0.5], [1 + 2**-9]])
    layer = QuantizedTensor(codes, scale, torch.zeros(3, 1), CHANNEL)
    symmetric = replace(layer, grid=replace(CHANNEL, symmetric=True))
    assert change_of_scales(symmetric, torch.float32) == 0
    # 1 + 2^-9 lies in the middle of 1 and the next of bfloat16, and goes to 1, which is even.
    wanted = 2**-9 / (1 + 2**-9)
    assert change_of_scales(symmetric, torch.bfloat16) == pytest.approx(wanted)
    assert change_of_scales(replace(symmetric, codes=0 * codes), torch.bfloat16) == 0


def refused(module, tmp_path, words, *args):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        exported(module, tmp_path, *args)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "family", "activation"),
    [
        (["range for each token", "kv_bits=null"], "llama", DynamicPerToken(8, 8)),
        (["layer transformer.h.0.attn.c_attn is a Conv1D"], "gpt2", None),
        (["fc1 takes [tokens, hidden]"], "opt", DynamicPerToken(8, None)),
        (
            ["layer deberta.encoder.layer.0.attention.self.query_proj is called 2 times",
             "activation=dynamic_per_token"],
            "deberta", ACTIVATIONS["static"],
        ),
    ],
    ids=["kv", "conv1d", "flat", "twice"],
)  # fmt: skip
def test_what_compressed_tensors_can_not_say_is_refused(words, family, activation, tmp_path):
    refused(compressed_tensors, tmp_path, words, family, CHANNEL, activation)


def test_a_layer_called_twice_is_exported_where_each_token_brings_its_range(tmp_path):
    dynamic = ACTIVATIONS["dynamic"]
    target, _, folder = exported(compressed_tensors, tmp_path, "deberta", CHANNEL, dynamic)
    assert torch.equal(logits(loaded(folder, "deberta")), logits(target.model))


def test_mixed_grids_are_refused_by_gptq(tmp_path):
    target, artifact = quantized("llama", CHANNEL)
    target.model.config.save_pretrained(tmp_path)
    name = next(iter(artifact.layers))
    other = replace(artifact.layers[name], grid=replace(CHANNEL, bits=8))
    mixed = replace(artifact, layers=dict(artifact.layers) | {name: other})
    with pytest.raises(ValueError, match=r"one grid for all layers, not 2 \(4, 8 bits\)"):
        gptq.export(mixed, target, tmp_path, tmp_path / "out")


def test_a_layer_left_in_full_precision_is_refused_by_gptq(tmp_path):
    """Whoever reads the layout turns every layer of a block into a packed one."""
    target, artifact = quantized("llama", CHANNEL)
    target.model.config.save_pretrained(tmp_path)
    name, *packed = artifact.layers
    fewer = replace(artifact, layers={n: artifact.layers[n] for n in packed})
    with pytest.raises(ValueError, match=f"no plain layer in a block, as {name} is"):
        gptq.export(fewer, target, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_classifier_of_images_is_refused(tmp_path):
    target = adapter()
    integers = RTN(
        target, calibration(), quantizer=METHODS["rtn"], grid=CHANNEL, ranges=MinMax(),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for module in (compressed_tensors, gptq):
        with pytest.raises(ValueError, match=r"holds transformers; .* it is none"):
            module.export(take(target, integers, {}), target, tmp_path, tmp_path / "out")


# GPTQ: read back by its published layout, number for number.


def numbers(words, bits, count):
    """Return count numbers of bits from a list of int32 words, little-endian, one after another."""
    whole = sum((word & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words))
    return [whole >> bits * i & 2**bits - 1 for i in range(count)]


def opened(tensors, name, bits, form):
    """Return the weight [out, in] of a layer: scales * (q - z), z one more than stored in v1."""
    qweight, qzeros = tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"]
    scales, g_idx = tensors[f"{name}.scales"], tensors[f"{name}.g_idx"]
    into, out = len(g_idx), qweight.shape[1]
    assert scales.dtype == torch.float16
    assert qweight.dtype == qzeros.dtype == g_idx.dtype == torch.int32
    q = torch.tensor([numbers(column.tolist(), bits, into) for column in qweight.T])
    z = torch.tensor([numbers(row.tolist(), bits, out) for row in qzeros]) + (form == "gptq")
    groups = g_idx.long()
    return (q - z.T[:, groups]) * scales.T[:, groups].float()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@symmetries
@granularities
def test_the_gptq_layout_holds_the_weights(granularity, symmetric, bits, tmp_path):
    grid = Grid(bits, symmetric, granularity)
    target, artifact, folder = exported(gptq, tmp_path, "llama", grid)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "quantize_config.json").read_text())
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == config
    assert (config["bits"], config["sym"], config["desc_act"]) == (bits, symmetric, False)
    assert config["group_size"] == (16 if isinstance(granularity, PerGroup) else -1)
    for name in list(artifact.layers)[:7]:
        weight = target.model.get_submodule(name).weight
        found = opened(tensors, name, bits, config["checkpoint_format"])
        # Scales in half precision: 11 significant bits.
        torch.testing.assert_close(found, weight, rtol=2**-11, atol=0)
        assert f"{name}.weight" not in tensors


def test_gptq_holds_conv1d_as_any_linear_layer(tmp_path):
    target, artifact, folder = exported(gptq, tmp_path, "gpt2", CHANNEL)
    tensors = load_file(folder / "model.safetensors")
    for name in list(artifact.layers)[:4]:
        weight = target.model.get_submodule(name).weight.T  # Conv1D stores [in, out]
        found = opened(tensors, name, 4, "gptq")
        torch.testing.assert_close(found, weight, rtol=2**-11, atol=0)


def test_groups_that_no_kernel_reads_are_refused_by_gptq():
    codes, ones = torch.zeros(32, 96, dtype=torch.int16), torch.ones(64, 1)
    layer = QuantizedTensor(codes, ones, 0 * ones, Grid(4, True, PerGroup(48)))
    with pytest.raises(ValueError, match=r"read in groups of 16, 32, .* not 48; export to comp"):
        gptq._check(layer)


def test_a_zero_point_of_zero_takes_the_second_version():
    codes = torch.arange(32 * 32).view(32, 32).remainder(16).to(torch.int16)
    scale, ones = torch.full((32, 1), 0.5), torch.ones(32, 1)
    for value, v1 in ((0, False), (15, False), (1, True), (15, True)):
        layer = QuantizedTensor(codes, scale, value * ones, CHANNEL)
        tensors = {f"x.{k}": t for k, t in gptq.layer_tensors(layer, v1).items()}
        form = "gptq" if v1 else "gptq_v2"
        assert torch.equal(opened(tensors, "x", 4, form), layer.dequantize())


def test_scales_below_zero_are_exported():
    """SignRound's full-range symmetric grid has them; in every format they only multiply."""
    codes = torch.arange(32 * 32).view(32, 32).remainder(16).sub(8).to(torch.int16)
    scale = torch.full((32, 1), 0.5)
    scale[::2] = -0.25
    layer = QuantizedTensor(codes, scale, torch.zeros(32, 1), Grid(4, True, PerChannel()))
    gptq._check(layer)
    tensors = {f"x.{k}": t for k, t in gptq.layer_tensors(layer, True).items()}
    assert torch.equal(opened(tensors, "x", 4, "gptq"), layer.dequantize())
    written = compressed_tensors.weight_tensors(layer, False, torch.float32)
    assert torch.equal(written["weight"] * written["weight_scale"], layer.dequantize())


@pytest.mark.parametrize(
    ("words", "grid", "activation"),
    [
        (["has 2, 3, 4, 8 bit, not 5"], Grid(5, False, PerChannel()), None),
        (["no quantized activations", "activation=none"], CHANNEL, DynamicPerToken(8, None)),
    ],
    ids=["bits", "activations"],
)
def test_what_gptq_can_not_say_is_refused(words, grid, activation, tmp_path):
    refused(gptq, tmp_path, words, "llama", grid, activation)


@pytest.mark.parametrize(
    ("shape", "scale", "words"),
    [((32, 30), 0.5, "fills words of 32"), ((32, 32), 1e-9, "scales in half precision")],
)
def test_what_a_gptq_layer_can_not_be(shape, scale, words):
    codes = torch.ones(shape, dtype=torch.int16)
    layer = QuantizedTensor(codes, torch.full((32, 1), scale), torch.zeros(32, 1), CHANNEL)
    with pytest.raises(ValueError, match=words):
        gptq._check(layer)
    if scale < 0.5:  # of channels that are all zero the scale says nothing
        gptq._check(replace(layer, codes=0 * codes))


# Half precision has 11 significant bits from 2^-14 on, and steps of 2^-24 below.
@pytest.mark.parametrize(
    ("scale", "kept"),
    [(1.3 * 2**-14, True), (1.3 * 2**-19, False), (-1.3 * 2**-19, False), (2**-15, True),
     (7e4, False), (torch.nan, False)],
)  # fmt: skip
def test_scales_that_half_precision_would_change_are_refused_by_gptq(scale, kept):
    codes = torch.arange(32 * 32).view(32, 32).remainder(16).to(torch.int16)
    scales = torch.full((32, 1), 0.5)
    scales[3] = scale
    layer = QuantizedTensor(codes, scales, torch.ones(32, 1), CHANNEL)
    if not kept:
        with pytest.raises(ValueError, match=r"\A[^\n]*half precision[^\n]*export to compressed"):
            gptq._check(layer)
        codes[3] = 1  # of a channel that is all zero the scale says nothing
    gptq._check(layer)
    tensors = {f"x.{key}": t for key, t in gptq.layer_tensors(layer, True).items()}
    found, wanted = opened(tensors, "x", 4, "gptq"), layer.dequantize()
    rows = [row for row in range(32) if kept or row != 3]
    torch.testing.assert_close(found[rows], wanted[rows], rtol=2**-11, atol=0)


@pytest.mark.parametrize(
    ("dtype", "scale", "kept"),
    [(torch.float16, 1e-7, False), (torch.float16, 1e-3, True), (torch.float16, 70000, False),
     (torch.bfloat16, 1e-7, True), (torch.float32, 1e-30, True)],
)  # fmt: skip
def test_scales_keep_the_bits_that_a_dtype_has_or_are_refused(dtype, scale, kept):
    """Half of the distance to the next number, of one that is not subnormal in dtype."""
    codes = torch.arange(32 * 32).view(32, 32).remainder(16).to(torch.int16)
    layer = QuantizedTensor(codes, torch.full((32, 1), scale), torch.ones(32, 1), CHANNEL)
    if kept:
        check_scales(layer, dtype, "")
        return
    with pytest.raises(ValueError, match=f"{scale:.6g} becomes"):
        check_scales(layer, dtype, "{scale} becomes {becomes}")


def test_the_command_line_exports(cli, results_dir, tmp_path, capsys):
    args = ("model=tiny_llama", "quant=rtn", "num_samples=8", "progress=false", "save=true")
    assert cli(*args).status == 0
    (folder,) = (results_dir / "artifacts").iterdir()
    for name in ("compressed-tensors", "gptq"):
        command = ["export", str(folder), "--to", name, "--out", str(tmp_path / name)]
        assert artifact.main(command) == 0
        assert (tmp_path / name / "tokenizer.json").is_file()
        capsys.readouterr()
        assert artifact.main(command) == 1
        assert capsys.readouterr().err.startswith(f"error: --out {tmp_path / name} exists")


def test_a_shortage_of_memory_is_one_line(tool, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("artifact.evaluate", short)
    status, _, err = tool("eval", "somewhere")
    assert (status, len(err.splitlines())) == (1, 1)
    assert err.startswith("error: out of memory; lower task.eval_batch_size")


@pytest.mark.parametrize("given", ["device=cuda", "device=cpu", "++device=cuda"])
def test_a_device_does_nothing_for_an_export(tool, tmp_path, given):
    status, _, err = tool("export", tmp_path, "--to", "onnx", "--out", tmp_path / "out", given)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {given} does nothing here")


def test_an_export_is_made_on_the_cpu_whatever_the_machine_has(tool, monkeypatch, tmp_path):
    """The exporter of ONNX makes what static activations come to on the CPU alone."""
    seen = []
    monkeypatch.setattr(rebuild, "read", lambda path: None)
    monkeypatch.setattr(rebuild, "device_of", lambda name: seen.append(name) or short())

    def short():
        raise ValueError("that is all")

    made = SimpleNamespace(overrides=["model=tiny_llama", "device=auto", "quant=rtn"])
    monkeypatch.setattr(rebuild, "provenance_of", lambda path: made)
    monkeypatch.setattr(rebuild, "locate", lambda path: tmp_path / "model.safetensors")
    status, _, err = tool("export", tmp_path, "--to", "onnx", "--out", tmp_path / "out")
    assert (status, err) == (1, "error: that is all\n")
    assert seen == ["cpu"]

"""ONNX files opened by onnxruntime, against the torch model that they were made from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

from experiment.build import build
from flexround.activations.quantizers import TensorQuantizer
from flexround.activations.schemes import DynamicPerToken, StaticPerTensor
from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import LpSearch, MinMax
from flexround.structure import Layer
from tests.flexround.models.test_language import EXAMPLE, network, tokens
from tests.flexround.models.test_position_ids import TEXTS, alone, padded
from tests.flexround.models.test_position_ids import network as untrained
from tests.flexround.quantizers.methods import METHODS, shaken
from tests.flexround.reconstruction.test_reconstruction import CPU, SETTING, adapter, calibration

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra export is not installed")

from flexround.artifact.exports.onnx import export  # noqa: E402

QDROP = replace(SETTING, act_steps="together", inputs="mixed", act_lr=1e-3, iters=4)
AS_WRITTEN = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
FUSED = ort.GraphOptimizationLevel.ORT_ENABLE_ALL  # the default, with kernels for integers
NEAR = 1e-4  # of a step: values closer than this to the middle of two codes may go either way

# Each layer of the network by another method, at other bits, in other groups: 54 weights a channel
# in the blocks, 27 in the first layer and 6 in the last.
LAYERS = {
    "0": ("rtn", Grid(8, False, PerChannel())),
    "2.conv1": ("flexround", Grid(4, True, PerGroup(18))),
    "2.conv2": ("adaround", Grid(3, False, PerGroup(6))),
    "3.conv1": ("adaquant", Grid(4, False, PerTensor())),
    "3.conv2": ("signround", Grid(2, True, PerChannel())),
    "6": ("adaquant_flexround", Grid(5, True, PerGroup(3))),
}


def by_layers(layers):
    """Return an adapter whose layers are quantized as layers say, and their integers."""
    target, integers = adapter(), {}
    for name, (method, grid) in layers.items():
        layer = [Layer(name, target.model.get_submodule(name))]
        shaken(attach(layer, METHODS[method], grid, MinMax())[0], 0.05)
        integers |= freeze(layer)
    return target, integers


def run(path, feed, level=AS_WRITTEN):
    """Return what onnxruntime answers, from feed of tensors by name."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: values.numpy() for name, values in feed.items()})[0]


@torch.no_grad()
def logits(target, batch):
    return target.forward(batch).numpy()


@pytest.mark.parametrize("level", [AS_WRITTEN, FUSED], ids=["as_written", "fused"])
def test_scales_below_zero_are_run(level, tmp_path):
    """SignRound's full-range symmetric grid has them; integer kernels multiply by them too."""
    target, samples = adapter(), calibration(8)
    integers = replace(SETTING, iters=4)(
        target, samples, quantizer=METHODS["signround"], grid=Grid(8, True, PerChannel()),
        ranges=MinMax(), generator=torch.Generator().manual_seed(0),
        activation=StaticPerTensor(8, True, 8, 8, None, 8, "quant"),
    )  # fmt: skip
    signs = torch.cat([held.scale.sign() for held in integers.values()])
    assert signs.min() < 0 < signs.max()
    export(target, integers, samples[0], tmp_path / "it.onnx")
    found = run(tmp_path / "it.onnx", {"images": samples[0]}, level)
    np.testing.assert_allclose(found, logits(target, samples[0]), atol=1e-5)


def constants(graph):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def dequantized(graph):
    """Return every constant behind DequantizeLinear by its name, by the operator's own formula.

    y = (x - x_zero_point) * x_scale, where a scale holds for the tensor, for an index along axis,
    or for block_size of them.
    """
    arrays, found = constants(graph), {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in arrays:
            continue
        codes, scale, zero = (arrays[name] for name in node.input)
        attributes = {a.name: a.i for a in node.attribute}
        axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
        if block:
            scale, zero = (np.repeat(values, block, axis=axis) for values in (scale, zero))
        elif scale.ndim:
            shape = [-1 if d == axis else 1 for d in range(codes.ndim)]
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        levels = codes.astype(np.int32) - zero.astype(np.int32)
        found[node.input[0]] = levels.astype(np.float32) * scale
    return found


def assert_no_float_copy(graph, weights):
    floats = [a for a in constants(graph).values() if a.dtype == np.float32]
    sizes = {weight.numel() for weight in weights}
    kept = {np.sort(a, axis=None).tobytes() for a in floats if a.size in sizes}
    assert not kept & {np.sort(w.numpy(), axis=None).tobytes() for w in weights}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    target, integers = by_layers(LAYERS)
    path = tmp_path_factory.mktemp("onnx") / "mixed.onnx"
    export(target, integers, calibration(2)[0], path)
    return target, onnx.load(path).graph, path


def test_every_weight_is_integers_that_dequantize_to_it_bit_for_bit(mixed):
    target, graph, _ = mixed
    found = dequantized(graph)
    assert len(found) == len(LAYERS)
    for name in LAYERS:
        weight = target.model.get_submodule(name).weight.numpy()
        back = found[f"model.{name}.weight.codes"].reshape(weight.shape)
        assert np.array_equal(back, weight), name
    assert_no_float_copy(graph, [target.model.get_submodule(name).weight for name in LAYERS])


def test_the_file_tells_nothing_of_the_machine(mixed):
    assert b"site-packages" not in mixed[2].read_bytes()


def test_codes_are_in_the_smallest_type_that_holds_them(mixed):
    _, graph, _ = mixed
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer}
    wanted = ["UINT8", "INT4", "UINT4", "UINT4", "INT2", "INT8"]
    assert [types[f"model.{name}.weight.codes"] for name in LAYERS] == wanted


@pytest.mark.parametrize("level", [AS_WRITTEN, FUSED], ids=["as_written", "fused"])
@pytest.mark.parametrize("size", [1, 7])
def test_onnxruntime_answers_as_torch_does_for_any_number_of_images(mixed, level, size):
    target, _, path = mixed
    images = calibration(size)[0]
    wanted = logits(target, images)
    np.testing.assert_allclose(run(path, {"images": images}, level), wanted, rtol=1e-5, atol=1e-6)


def near_ties(target, images):
    """Return target's logits, and which images have a value that may round either way."""
    near = torch.zeros(len(images), dtype=torch.bool)

    @torch.no_grad()
    def look(quantizer, args, _):
        steps = args[0] / quantizer.scale
        near.logical_or_((steps - steps.floor() - 0.5).abs().lt(NEAR).flatten(1).any(1))

    handle = nn.modules.module.register_module_forward_hook(
        lambda m, args, out: look(m, args, out) if isinstance(m, TensorQuantizer) else None
    )
    try:
        return logits(target, images), near.numpy()
    finally:
        handle.remove()


def with_activations(bits, stem_bits):
    target = adapter()
    integers = QDROP(
        target, calibration(32), quantizer=METHODS["flexround"],
        grid=Grid(8, True, PerTensor()), ranges=LpSearch(2.4, 80, 0.01),
        activation=StaticPerTensor(bits, True, stem_bits, 8, None, 8, ranges_from="quant"),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return target, integers


@pytest.mark.parametrize(("bits", "stem_bits"), [(8, 8), (3, 4)])
def test_activations_round_as_in_torch_but_for_ties(tmp_path, bits, stem_bits):
    target, integers = with_activations(bits, stem_bits)
    path = tmp_path / "it.onnx"
    export(target, integers, calibration(2)[0], path)
    graph = onnx.load(path).graph
    sites = {site.name for block in target.blocks() for site in block.sites}
    ops = Counter(node.op_type for node in graph.node)
    assert ops["QuantizeLinear"] == len(sites)
    assert ops["DequantizeLinear"] == len(sites) + len(integers)
    narrow = {3: 4, 8: 0}[bits]  # sites of fewer bits than their type has: the stem has 4
    assert ops["Min"] == narrow

    images = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    wanted, near = near_ties(target, images)
    assert near.sum() < len(images) / 2
    answer = run(path, {"images": images})
    np.testing.assert_allclose(answer[~near], wanted[~near], rtol=1e-5, atol=1e-6)
    differ = answer.argmax(1) != wanted.argmax(1)
    assert not (differ & ~near).any()
    # Kernels for integers round a bias to the product of two scales, so that more values are near.
    fused = run(path, {"images": images}, FUSED)
    first, second = np.sort(wanted, axis=1)[:, :-3:-1].T
    assert ((fused.argmax(1) == wanted.argmax(1)) | (first - second < 0.01)).all()


def encoder(activation, grid):
    target = LanguageAdapter(network("bert"), EXAMPLE, CPU)
    setting = replace(QDROP if activation.learns else SETTING, batch_size=2, iters=2)
    integers = setting(
        target, [tokens("right")], quantizer=METHODS["flexround"], grid=grid, ranges=MinMax(),
        activation=activation, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return target, integers


def test_an_encoder_takes_any_number_of_sequences_of_any_length(tmp_path):
    static = StaticPerTensor(8, True, 8, 8, kv_bits=None, init_samples=4, ranges_from="quant")
    target, integers = encoder(static, Grid(4, False, PerGroup(16)))
    path = tmp_path / "it.onnx"
    export(target, integers, tokens("right", n=3, length=9), path)
    graph = onnx.load(path).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 2 * 4, "4 sites a layer"
    weights = {name: target.model.get_submodule(name).weight for name in integers}
    found = dequantized(graph)
    assert all(np.array_equal(found[f"model.{n}.weight.codes"], w) for n, w in weights.items())
    assert_no_float_copy(graph, weights.values())
    for batch in (tokens("right"), tokens("right", n=1, length=5), tokens("right", n=4, length=30)):
        wanted = logits(target, batch)
        np.testing.assert_allclose(run(path, batch), wanted, rtol=1e-3, atol=1e-4)


def head(kind, family, grid):
    """Return a transformer with a head of this kind, rounded to nearest, and its integers."""
    made = untrained(f"AutoModelFor{kind}", family)
    target = LanguageAdapter(made, EXAMPLE, CPU)
    layers = list(target.layers().values())
    attach(layers, METHODS["rtn"], grid, MinMax())
    return target, freeze(layers)


def with_a_gap():
    batch = padded("right")
    batch["attention_mask"][1, 5:9] = 0
    return batch


@pytest.mark.parametrize(
    ("kind", "family", "side"),
    [("SequenceClassification", "gpt_neo", "right"), ("SequenceClassification", "opt", "left"),
     pytest.param("QuestionAnswering", "bert", "left", marks=pytest.mark.slow),
     ("QuestionAnswering", "bert", "right")],
)  # fmt: skip
def test_tokens_have_the_positions_that_they_have_in_torch(kind, family, side, tmp_path):
    """Whichever side a batch is padded on, and whichever the one was that the graph is made of."""
    target, integers = head(kind, family, Grid(8, False, PerChannel()))
    path = tmp_path / "it.onnx"
    export(target, integers, padded(side), path)
    batches = [padded("left"), padded("right"), *map(alone, TEXTS)]
    if family == "bert":  # OPT counts over a gap by itself
        batches.append(with_a_gap())
    for batch in batches:
        wanted = logits(target, batch)
        np.testing.assert_allclose(run(path, batch), wanted, rtol=1e-4, atol=1e-5)


# GPT-2 has four Conv1D a layer, which store [in, out]: codes are [out, in], and so are groups.
GPT2_GRIDS = [
    Grid(4, False, PerChannel()), Grid(4, True, PerGroup(16)), Grid(8, False, PerTensor()),
    Grid(3, False, PerGroup(8)), Grid(2, True, PerGroup(32)), Grid(2, False, PerChannel()),
    Grid(6, True, PerTensor()), Grid(5, True, PerChannel()),
]  # fmt: skip


def test_conv1d_is_written_as_it_lies_in_the_network(tmp_path):
    target = LanguageAdapter(untrained("AutoModelForSequenceClassification", "gpt2"), EXAMPLE, CPU)
    integers = {}
    for layer, grid in zip(target.layers().values(), GPT2_GRIDS, strict=True):
        attach([layer], METHODS["rtn"], grid, MinMax())
        integers |= freeze([layer])
    path = tmp_path / "it.onnx"
    export(target, integers, padded("right"), path)
    graph = onnx.load(path).graph
    weights = {name: target.model.get_submodule(name).weight for name in integers}
    found = dequantized(graph)
    assert all(np.array_equal(found[f"model.{n}.weight.codes"], w) for n, w in weights.items())
    assert_no_float_copy(graph, weights.values())
    for side in ("left", "right"):
        wanted = logits(target, padded(side))
        for level, limit in ((AS_WRITTEN, 1e-5), (FUSED, 0.02)):  # linear layers in 8 bits
            answer = run(path, padded(side), level)
            assert np.abs(answer - wanted).max() <= limit * np.abs(wanted).max()


def test_conv1d_takes_quantized_activations(tmp_path):
    target = LanguageAdapter(untrained("AutoModelForSequenceClassification", "gpt2"), EXAMPLE, CPU)
    integers = replace(SETTING, iters=0)(
        target, [padded("right")], quantizer=METHODS["rtn"], grid=Grid(4, False, PerGroup(16)),
        ranges=MinMax(), generator=torch.Generator().manual_seed(0),
        activation=StaticPerTensor(8, True, 8, 8, None, 4, "quant"),
    )  # fmt: skip
    path = tmp_path / "it.onnx"
    export(target, integers, padded("right"), path)
    for batch in map(alone, TEXTS):
        wanted = logits(target, batch)
        np.testing.assert_allclose(run(path, batch), wanted, rtol=1e-3, atol=1e-4)
        answer = run(path, batch, FUSED)
        assert np.abs(answer - wanted).max() <= 0.05 * np.abs(wanted).max()


def causal():
    target = LanguageAdapter(network("llama"), EXAMPLE, CPU)
    return target, {}, EXAMPLE


def per_token():
    return (*encoder(DynamicPerToken(8, None), Grid(8, False, PerTensor())), tokens("right"))


def changed(**change):
    target, integers = by_layers(LAYERS)
    integers["0"] = replace(integers["0"], **change)
    with torch.no_grad():
        target.model[0].weight.copy_(integers["0"].dequantize())
    return target, integers, calibration(2)[0]


def foreign():
    (target, _), integers = by_layers(LAYERS), by_layers(LAYERS)[1]
    integers["6"] = replace(integers["6"], scale=2 * integers["6"].scale)
    return target, integers, calibration(2)[0]


def missing():
    target, integers = by_layers(LAYERS)
    del integers["3.conv1"]
    return target, integers, calibration(2)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [(causal, "LlamaForCausalLM generates text"),
     (per_token, r"activation bert.*query.input: its range is found for each token"),
     (lambda: changed(zero_point=torch.full((6, 1), 1.5)), "layer 0: zero point 1.5 is no whole"),
     (lambda: changed(zero_point=torch.full((6, 1), -3.0)), "layer 0: zero point -3 is no whole"),
     (foreign, "layer 6: its weight is not what its integers stand for"),
     (missing, "layer 3.conv1: only the model has it")],
)  # fmt: skip
def test_what_onnx_cannot_express_is_refused_and_nothing_is_written(tmp_path, make, message):
    target, integers, batch = make()
    with pytest.raises(ValueError, match=message) as refusal:
        export(target, integers, batch, tmp_path / "it.onnx")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18 task=digits", "tiny_bert"])
def test_a_trained_network_in_8_bits_answers_its_test_set_as_in_torch(
    model, tmp_path, cache_dir, monkeypatch
):
    options = ["quant=rtn", "bits=8", "act_bits=8", "activation=static_per_tensor", "recon=qdrop"]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", [*f"model={model}".split(), f"cache_dir={cache_dir}", *options])
    task = build(cfg.task)
    target = build(cfg.model).adapter(task, None, CPU)
    batches = task.calibration(128, 0)
    integers = build(cfg.recon)(
        target, batches, quantizer=build(cfg.quant), activation=build(cfg.activation),
        grid=Grid(8, cfg.symmetric, PerTensor()), ranges=build(cfg.ranges),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    path = tmp_path / "it.onnx"
    export(target, integers, batches[0], path)

    seen, forward = [], target.forward
    monkeypatch.setattr(target, "forward", lambda batch: seen.append(batch) or forward(batch))
    task.evaluate(target)
    monkeypatch.undo()
    wanted = np.concatenate([logits(target, batch) for batch in seen])
    feeds = [batch if isinstance(batch, dict) else {"images": batch} for batch in seen]
    for level in (AS_WRITTEN, FUSED):
        answer = np.concatenate([run(path, feed, level) for feed in feeds])
        assert np.abs(answer - wanted).max() < 0.02 * np.abs(wanted).max()
        differ = answer.argmax(1) != wanted.argmax(1)
        print(f"{model}: {differ.sum()} of {len(wanted)} differ")
        assert differ.mean() < 0.01

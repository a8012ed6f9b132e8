"""One call quantizes a network in memory, with the numbers of the command line."""

from __future__ import annotations

import doctest
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flexround
import results
from experiment.build import build
from experiment.config import composed
from flexround.api import presets, rules
from flexround.api import quantize as call
from flexround.artifact.file_format import read
from flexround.utils.tensor_float32 import tensor_float32
from results.records.store import Store
from scripts.presets import FILE, text
from tasks.language.tiny_families import config_of
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]
SHORT = {"recon.iters": 3, "recon.batch_size": 8}
LLAMA = ("model=tiny_llama", "task.seq_len=16", "protocol.max_windows=8")
BERT = ("model=tiny_bert", "task.max_len=32")


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them, drawn by a seed."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for into, out in pairwise(widths):
        parts += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def samples(count: int = 32, *shape: int) -> Tensor:
    """Return normal samples of a seed of their own."""
    return torch.randn(count, *(shape or (8,)), generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Two convolutions and a skip, of a class that no adapter knows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.relu(x + self.body(x))


class OwnNet(nn.Module):
    """A stem, residual blocks in a list, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.layers = nn.ModuleList([Residual(8) for _ in range(3)])
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "method", "bits", "given", "arguments"),
    [
        # digits has a schedule of its own for a method, which a network in memory has not.
        (TINY, "flexround", 3, ("recon.iters=3", "recon.batch_size=8", "recon.lr=1e-3"), {}),
        (TINY, "rtn", 4, (), {}),
        pytest.param(
            TINY, "adaround", 4,
            ("recon.iters=3", "recon.batch_size=8", "recon.lr=1e-3", "recon=qdrop",
             "recon.act_lr=4e-5", "quant.reg_weight=0.01",
             "activation=static_per_tensor", "act_bits=6"),
            {"act_bits": 6}, marks=pytest.mark.slow,
        ),
        (LLAMA, "signround", 2, ("recon.iters=3", "seed=7"), {"seed": 7}),
        (
            LLAMA, "flexround", 4,
            ("recon.iters=3", "recon.batch_size=4", "recon.lr=0.01", "granularity=per_group",
             "group_size=8", "symmetric=true"),
            {"group_size": 8, "symmetric": True},
        ),
        (
            LLAMA, "flexround", 4,
            ("recon.iters=3", "recon.batch_size=4", "recon.lr=0.01", "grid=nf4",
             "granularity=per_group", "group_size=8"),
            {"grid": "nf4", "group_size": 8},
        ),
        (LLAMA, "rtn", 4, ("grid=mxfp4",), {"grid": "mxfp4"}),
        (
            LLAMA, "gptq", 3, ("bits_per_layer={model.layers.0.*: 2, *.down_proj: 8}",),
            {"bits_per_layer": {"model.layers.0.*": 2, "*.down_proj": 8}},
        ),
        pytest.param(
            TINY, "adaround", 4,
            ("recon.iters=3", "recon.batch_size=8", "recon.lr=1e-3", "quant.reg_weight=0.01",
             "grid=fp4", "symmetric=false", "activation=static_per_tensor", "act_bits=6"),
            {"grid": "fp4", "symmetric": False, "act_bits": 6}, marks=pytest.mark.slow,
        ),
        pytest.param(
            LLAMA, "rtn", 3, ("transform=awq", "bits_per_layer={*.q_proj: 2}"),
            {"bits_per_layer": {"*.q_proj": 2}}, marks=pytest.mark.slow,
        ),
        (LLAMA, "cdquant", 3, ("quant.start=rtn", "quant.sweeps=2"), {}),
        (LLAMA, "gptq", 3, ("transform=smoothquant", "transform.alpha=0.7"), {}),
        pytest.param(
            BERT, "lrq", 4,
            ("recon.iters=2", "recon.batch_size=4", "quant.rank=2", "granularity=per_tensor"),
            {"granularity": "per_tensor"}, marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_its_codes_are_those_of_the_command_line(
    cli, results_dir, cache_dir, network, method, bits, given, arguments
):
    run = [*network, "num_samples=16", f"quant={method}", f"bits={bits}", *given]
    if method in ("signround", "gptq", "cdquant"):  # whose own is C4, of the hub
        run += ["calibration=own", "protocol=file"]
    done = cli(*run, "save=true")
    assert done.status == 0, done.err
    (record,) = Store(results_dir).load()
    saved = read(Store(results_dir).artifact(record.run_id))

    cfg = composed([*run, f"cache_dir={cache_dir}"])
    task, model = build(cfg.task), build(cfg.model)
    own = {text.partition("=")[0]: text.partition("=")[2] for text in given}
    options = {n: _value(v) for n, v in own.items() if n not in arguments and n not in TAKEN}
    net = task.load(model, None).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = flexround.quantize(
        net, task.calibration(16, cfg.seed), method, bits, **arguments, options=options
    )

    assert found.layers.keys() == saved.layers.keys()
    for name, layer in saved.layers.items():
        mine = found.layers[name]
        assert torch.equal(mine.codes, layer.codes), name
        assert torch.equal(mine.scale, layer.scale), name
        assert torch.equal(mine.zero_point, layer.zero_point), name
        assert mine.grid == layer.grid
    reports = [unit.error_after for unit in found.units]
    assert reports == [block["error_after"] for block in record.blocks]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), "the network given stays as it is"


# What the arguments say in the place of an option.
TAKEN = (
    "seed", "activation", "granularity", "group_size", "symmetric", "act_bits", "grid",
    "bits_per_layer",
)  # fmt: skip


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def test_the_presets_are_those_that_hydra_composes():
    assert FILE.read_text() == text(), "stale: python -m scripts.presets makes it again"


def test_arguments_without_a_value_have_the_command_lines_default():
    parameters = inspect.signature(flexround.quantize).parameters
    cfg = composed([])
    assert parameters["method"].default == "flexround"
    assert (parameters["bits"].default, parameters["seed"].default) == (cfg.bits, cfg.seed)


@pytest.mark.parametrize("method", flexround.methods())
def test_every_method_quantizes_a_network_in_memory(method):
    learned = method not in ("rtn", "gptq", "gptaq", "qronos", "cdquant")
    options = {"model.first_last_bits": None} | (SHORT if learned else {})
    options |= {"quant.rank": 2} if method == "lrq" else {}
    options |= {"ranges": "min_max"} if method == "signround_v2" else {}  # its own are for text
    net, data = mlp(8, 16, 16, 4), samples()
    found = flexround.quantize(net, data, method, 3, granularity="per_channel", options=options)
    assert list(found.layers) == ["0", "2", "4"]
    for name, layer in found.layers.items():
        assert layer.grid.bits == 3
        weight = found.network.get_submodule(name).weight
        assert torch.equal(weight, layer.dequantize())
        assert layer.codes.unique().numel() <= 8
        assert layer.scale.shape == (len(weight), 1)
    assert type(found.network[0]) is nn.Linear, "no parametrization is left"
    assert not found.network.training
    assert [unit.name for unit in found.units] == ["0", "2", "4"]
    assert found.coverage.share == 1
    units = results.units(found)
    assert units.index.get_level_values("unit").tolist() == ["0", "2", "4"]
    assert method in repr(found)
    assert "3 layers at 3 bits" in repr(found)


def test_a_table_of_levels_takes_the_nearest_level():
    """E2M1 has 0, 0.5, 1, 1.5, 2, 3, 4, 6; the largest weight is the last one."""
    net = nn.Sequential(nn.Linear(8, 1, bias=False))
    net[0].weight.data = torch.tensor([[-12.0, 5.1, 0.4, -2.4, 6.9, 1.1, 9.0, 0.0]])
    options = {"ranges": "min_max", "model.first_last_bits": None}
    found = flexround.quantize(net, samples(4, 8), "rtn", 4, grid="fp4", options=options)
    expected = torch.tensor([[-12.0, 6.0, 0.0, -2.0, 6.0, 1.0, 8.0, 0.0]])
    assert torch.equal(found.network[0].weight, expected)
    assert found.settings["grid"] == "fp4"


def test_layers_have_the_bits_that_are_given():
    options = {"model.first_last_bits": None}
    bits = {"[02]": 2, "2": 5}
    found = flexround.quantize(
        mlp(8, 16, 16, 4), samples(), "rtn", 3, bits_per_layer=bits, options=options
    )
    assert {name: layer.grid.bits for name, layer in found.layers.items()} == {
        "0": 2, "2": 5, "4": 3
    }  # fmt: skip
    assert found.settings["bits_per_layer"] == bits
    plain = flexround.quantize(mlp(8, 16, 16, 4), samples(), "rtn", 3, options=options)
    assert plain.settings["bits_per_layer"] == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"grid": "nf5"}, r"grid='nf5': did you mean nf4\? give one of fp4, integer, mxfp4, nf4"),
        ({"grid": "nf4", "bits": 3}, "grid=nf4 has codes of 4 bits, not bits=3"),
        ({"grid": "nf4", "symmetric": True}, "symmetric=True does nothing with grid=nf4"),
        ({"grid": "mxfp4", "group_size": 16}, "grid=mxfp4 has a scale for each 32 weights"),
        ({"grid": "mxfp4", "granularity": "per_channel"}, "give granularity=per_group"),
        ({"grid": "fp4", "options": {"ranges": "lp_2d"}}, "which symmetric=true has none of"),
        ({"bits_per_layer": {"7": 4}}, "bits_per_layer: 7 is none of the 3 layers"),
        ({"bits_per_layer": {"*": 9}}, r"\* has 9; give a whole number from 2 to 8"),
        ({"bits_per_layer": {"*": True}}, "has True; give a whole number"),
        ({"bits_per_layer": {0: 4}}, "0 is no text"),
        ({"bits_per_layer": 4}, "bits_per_layer=4: give layers with their bits"),
        ({"bits_per_layer": {"0": 3}, "grid": "nf4"}, "a table of levels, which has 4 bits alone"),
        ({"options": {"bits_per_layer": {"0": 3}}}, "which is an argument of its own"),
    ],
)
def test_what_grids_and_bits_of_layers_refuse(given, told):
    with pytest.raises(ValueError, match=told):
        flexround.quantize(mlp(8, 16, 16, 4), samples(), "rtn", **given)


def test_rounding_to_nearest_is_the_equation():
    weight = torch.tensor([[-1.0, 0.26, 0.5, 1.0]])
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    net[0].weight.data = weight
    options = {"ranges": "min_max", "model.first_last_bits": None}
    found = flexround.quantize(net, samples(4, 4), "rtn", 2, options=options)
    scale = 2 * 1.0 / 3
    assert found.layers["0"].scale.item() == pytest.approx(scale)
    assert found.layers["0"].codes.tolist() == [[-2, 0, 1, 1]], "clamped to -2 .. 1"
    assert found.network[0].weight[0].tolist() == pytest.approx([-2 * scale, 0, scale, scale])


def test_data_come_as_a_tensor_a_list_or_a_loader_alike():
    net, data = mlp(8, 16, 4), samples(32)
    loader = DataLoader(TensorDataset(data, torch.zeros(32)), batch_size=8)
    ways = (data, list(data.split(8)), [(part, None) for part in data.split(16)], loader)
    codes = [
        flexround.quantize(net, way, bits=3, options=SHORT | {"model.first_last_bits": None})
        .layers["0"]
        .codes
        for way in ways
    ]
    for other in codes[1:]:
        assert torch.equal(other, codes[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same(context):
    net, data = mlp(8, 16, 16, 4), samples()
    plain = flexround.quantize(net, data, bits=3, options=SHORT)
    with context():
        found = flexround.quantize(net, data, bits=3, options=SHORT)
    for name, layer in plain.layers.items():
        assert torch.equal(found.layers[name].codes, layer.codes)


def test_nothing_is_drawn_from_the_global_generator_and_train_mode_stays():
    net, data = mlp(8, 16, 16, 4).train(), samples()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    flexround.quantize(net, data, "lrq", options=SHORT | {"quant.rank": 2})
    assert torch.equal(torch.rand(3), wanted)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_language_model_takes_token_ids_or_dicts():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    ids = torch.randint(0, 100, (8, 16), generator=torch.Generator().manual_seed(0))
    options = {"recon.iters": 2, "recon.batch_size": 4}
    first = flexround.quantize(net, ids, bits=4, options=options)
    again = flexround.quantize(net, [{"input_ids": ids, "labels": ids}], bits=4, options=options)
    assert first.layers
    assert all(name.startswith("model.layers.") for name in first.layers)
    for name, layer in first.layers.items():
        assert torch.equal(layer.codes, again.layers[name].codes)
        assert not layer.grid.symmetric
        assert layer.scale.shape[0] == layer.codes.shape[0], "a scale an output channel"
    assert first.network.config.use_cache == net.config.use_cache
    with pytest.raises(ValueError, match=r"first_last_bits is for networks of tensors"):
        flexround.quantize(net, ids, options=options | {"model.first_last_bits": 8})


def test_a_layer_of_two_blocks_is_refused():
    transformers = pytest.importorskip("transformers")
    net = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    net.model.layers[1].mlp = net.model.layers[0].mlp
    ids = torch.randint(0, 100, (8, 16), generator=torch.Generator().manual_seed(0))
    told = r"layer model.layers.0.mlp.*is one of model.layers.0 and of model.layers.1"
    with pytest.raises(ValueError, match=told):
        flexround.quantize(net, ids, "rtn")


def test_a_sample_of_padding_alone_is_refused():
    transformers = pytest.importorskip("transformers")
    net = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    mask = torch.ones(8, 16, dtype=torch.long)
    mask[5] = 0
    batch = {"input_ids": torch.arange(128).view(8, 16) % 100, "attention_mask": mask}
    with pytest.raises(ValueError, match=r"sample 5 is padding alone.*take it out"):
        flexround.quantize(net, [batch], options={"recon.iters": 2, "recon.batch_size": 1})


class Conv1D(nn.Conv1d):
    """A convolution by the name of transformers' linear layer."""


def test_a_layer_is_known_by_what_it_computes_and_not_by_its_name():
    utils = pytest.importorskip("transformers").pytorch_utils
    torch.manual_seed(0)
    mixed = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), utils.Conv1D(12, 16), nn.ReLU(), nn.Linear(12, 4)
    )
    found = flexround.quantize(mixed, samples(), bits=4, options=SHORT)
    assert [(n, tuple(layer.codes.shape)) for n, layer in found.layers.items()] == [
        ("0", (16, 8)), ("2", (12, 16)), ("4", (4, 12)),
    ]  # fmt: skip
    assert torch.equal(found.network[2].weight, found.layers["2"].dequantize().T)
    named, data = nn.Sequential(Conv1D(3, 6, 5), nn.Flatten(), nn.Linear(48, 4)), samples(32, 3, 12)
    plain = nn.Sequential(nn.Conv1d(3, 6, 5), nn.Flatten(), nn.Linear(48, 4))
    plain.load_state_dict(named.state_dict())
    for method in ("flexround", "gptq"):
        options = SHORT if method == "flexround" else {}
        own, wanted = (
            flexround.quantize(net, data, method, granularity="per_channel", options=options)
            for net in (named, plain)
        )
        assert torch.equal(own.layers["0"].codes, wanted.layers["0"].codes)


def test_blocks_of_an_unknown_class_are_found():
    net, data = OwnNet(), samples(16, 3, 12, 12)
    found = flexround.quantize(net, data, bits=4, options=SHORT)
    names = ["stem", "layers.0", "layers.1", "layers.2", "head"]
    assert [unit.name for unit in found.units] == names
    assert len(found.layers) == 8
    weights = {name: found.network.get_submodule(name).weight for name in found.layers}
    for name, layer in found.layers.items():
        assert torch.equal(weights[name], layer.dequantize())
    assert found.network(data).shape == (16, 10)


def test_activations_are_quantized_at_every_call():
    net, data = OwnNet(), samples(16, 3, 12, 12)
    plain = flexround.quantize(net, data, bits=8, options=SHORT)
    coarse = flexround.quantize(net, data, bits=8, act_bits=2, options=SHORT)
    exact = net.eval()(data)
    errors = [(found.network(data) - exact).norm() for found in (plain, coarse)]
    assert errors[1] > 2 * errors[0]


class Skipping(nn.Module):
    """A skip across the whole network, so that no part of it is a block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        a = self.a(x)
        return self.c(a + self.b(a))


class Recurrent(nn.Module):
    """A network whose weights are no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.rnn(x)[0][:, -1])


def tied():
    """Return two layers of one weight, and a head."""
    net = mlp(8, 8, 8, 4)
    net[2].weight = net[0].weight
    return net


BAD = {
    "tied": (tied, samples(), {"options": SHORT}, "layers 0 and 2 share one weight"),
    "tied to what is left": (
        tied, samples(), {"options": SHORT | {"model.leave": ["2"]}}, "layers 0 and 2 share one",
    ),
    "skip": (lambda: Skipping(), samples(), {}, "block c needs more than the output of b"),
    "recurrent": (lambda: Recurrent(), samples(32, 5, 8), {}, "LSTM holds rnn.weight_ih_l0"),
    "no layer": (lambda: nn.Sequential(nn.BatchNorm1d(8)), samples(), {}, "no convolution or"),
    "no network": (lambda: "net", samples(), {}, "give a torch.nn.Module"),
    "no weights": (lambda: nn.ReLU(), samples(), {}, "no parameters"),
    "other size": (lambda: mlp(9, 4), samples(), {}, "forward pass fails on inputs"),
    "one layer": (lambda: nn.Linear(8, 4), samples(), {}, "inside of a torch.nn.Sequential"),
    "empty": (lambda: mlp(8, 4), [], {}, "calibration is empty"),
    "empty batch": (lambda: mlp(8, 4), samples(32)[:0], {}, "holds no sample"),
    "half": (lambda: mlp(8, 4).half(), samples().half(), {}, r"float16; give network.float\(\)"),
    "single samples": (lambda: mlp(8, 4), list(torch.ones(32, 8)), {}, "torch.stack"),
    "one sample": (lambda: mlp(8, 4), torch.ones(8), {}, "torch.stack"),
    "no data": (lambda: mlp(8, 4), None, {}, "calibration is a NoneType"),
    "an array": (lambda: mlp(8, 4), [samples().numpy()], {}, "numpy.ndarray, no tensor"),
    "few": (lambda: mlp(8, 4), samples(4), {}, r"recon.batch_size=32.*'recon.batch_size': 4"),
    "not finite": (lambda: mlp(8, 4), samples() / 0, {}, "batch 1: sample 0 .* not finite"),
    "two sizes": (lambda: mlp(8, 4), [samples(), samples(8, 9)], {}, r"batch 2 is \[9\]"),
    "dicts": (lambda: mlp(8, 4), {"input_ids": samples()}, {}, "Sequential has no config"),
    "method": (lambda: mlp(8, 4), samples(), {"method": "flexrond"}, "mean flexround.*gptq"),
    "bits": (lambda: mlp(8, 4), samples(), {"bits": 9}, "bits=9: give a whole number from 2 to 8"),
    "no bits": (
        lambda: mlp(8, 4), samples(), {"bits": None}, "bits=None: give a whole number from 2 to 8",
    ),
    "seed below 0": (
        lambda: mlp(8, 4), samples(), {"seed": -1}, "seed=-1: give a whole number from 0 to 429496",
    ),
    "large seed": (lambda: mlp(8, 4), samples(), {"seed": 2**32}, "from 0 to 4294967295"),
    "no seed": (lambda: mlp(8, 4), samples(), {"seed": None}, "seed=None: give a whole number"),
    "half a seed": (lambda: mlp(8, 4), samples(), {"seed": 1.5}, r"seed=1\.5: give a whole number"),
    "a truth for a seed": (lambda: mlp(8, 4), samples(), {"seed": True}, "seed=True: give a whole"),
    "half a bit": (lambda: mlp(8, 4), samples(), {"bits": 3.5}, "bits=3.5: give a whole number"),
    "act_bits": (lambda: mlp(8, 4), samples(), {"act_bits": 1}, "act_bits=1: give a whole number"),
    "device": (lambda: mlp(8, 4), samples(), {"device": "nowhere"}, "device=nowhere"),
    "granularity": (lambda: mlp(8, 4), samples(), {"granularity": "row"}, "per_channel, per_group"),
    "idle group": (
        lambda: mlp(8, 4), samples(), {"granularity": "per_tensor", "group_size": 4},
        "group_size=4 does nothing with granularity=per_tensor",
    ),
    "odd group": (lambda: mlp(8, 8, 8, 8), samples(), {"group_size": 3}, "layer 2: group_size=3"),
    "options": (lambda: mlp(8, 4), samples(), {"options": 3}, "options=3: give a dict"),
    "twice": (lambda: mlp(8, 4), samples(), {"options": {"bits": 4}}, "argument of its own"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_done_is_one_line(case):
    make, data, arguments, told = BAD[case]
    with pytest.raises(ValueError, match=told) as refused:
        flexround.quantize(make(), data, **arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "option", "value", "told"),
    [
        ("flexround", "recon.iter", 5, "did you mean recon.iters"),
        ("flexround", "quant.rank", 5, "quant.learn_s1, quant.use_s3, quant.use_s4"),
        ("flexround", "iters", 5, r"did you mean recon\.iters\?"),
        ("flexround", "lr", 1e-2, r"did you mean recon\.lr\?"),
        ("flexround", "batchsize", 4, r"did you mean recon\.batch_size\?"),
        ("flexround", "quant.iters", 5, r"did you mean recon\.iters\? there are quant\.learn_s1"),
        ("flexround", "rank", 5, "rank: there is no such option; there are act_stem_bits"),
        ("flexround", "threads", 2, "threads: there is no such option; there are act_stem_bits"),
        ("flexround", "bit", 3, "did you mean bits, an argument of its own"),
        ("flexround", "activation.bits", 8, "activation.bits: there is no such option; there are"),
        ("flexround", "scale", "smoke", "no such option"),
        ("flexround", "recon._target_", "os.system", "no such option"),
        ("flexround", "recon.iters", "many", "give a whole number"),
        ("flexround", "recon.iters", True, "give a whole number"),
        ("flexround", "quant.use_s3", 1, "give True or False"),
        ("flexround", "recon.iters", -1, "give 0 or more"),
        ("gptq", "recon.batch_size", None, "batch_size=None: give a whole number"),
        ("flexround", "act_bits", None, "argument of its own"),
        ("adaround", "recon.keep_best", True, "recon.keep_best=true: AdaRound decides"),
        ("flexround", "recon.act_iters", 5, "does nothing with"),
        ("flexround", "kv_bits", 8, "does nothing with activation=none"),
        ("flexround", "recon", "solve", "give one of block"),
        ("flexround", "ranges", "lp_2d", "moves the zero point"),
        ("flexround", "model.leave", "0", "give a list of names"),
        ("flexround", "model.leave", ["nope"], "names no weight"),
        ("flexround", "transform", "awq", "transformer language model"),
        ("rtn", "recon.iters", 5, "does nothing with quant=rtn"),
        ("adaquant", "recon.lr", 1e-3, "does nothing with quant=adaquant"),
        ("gptq", "recon", "block", "give one of solve"),
        ("gptq", "clipping", False, "does nothing with ranges=min_max"),
        ("gptq", "quant.static_groups", True, "does nothing with granularity=per_tensor"),
        ("cdquant", "quant.gptq.damp", 0.1, "does nothing with quant.start=owc"),
        ("lrq_", "quant.rank", 2, "did you mean lrq"),
    ],
)
def test_an_option_that_is_none_or_does_nothing_is_refused(method, option, value, told):
    with pytest.raises(ValueError, match=told) as refused:
        flexround.quantize(mlp(8, 8, 4), samples(), method, options={option: value})
    assert "\n" not in str(refused.value)


def test_arguments_are_not_among_the_options_that_there_are():
    parameters = inspect.signature(flexround.quantize).parameters.keys()
    assert {*presets.ARGUMENTS} == parameters - {
        "model", "calibration", "method", "device", "options"
    }  # fmt: skip
    with pytest.raises(ValueError, match="there are") as refused:
        flexround.quantize(mlp(8, 8, 4), samples(), options={"nothing": 1})
    listed = str(refused.value).rpartition("there are ")[2].split(", ")
    assert {"kv_bits", "clipping", "act_head_bits"} <= {*listed}
    assert not {*presets.ARGUMENTS, *presets.NOT_GIVEN} & {*listed}


def test_bits_of_an_image_networks_ends_are_refused_for_a_language_model():
    tokens = torch.arange(64).view(8, 8) % 32
    options = {"act_head_bits": 2}
    transformers = pytest.importorskip("transformers")
    net = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    with pytest.raises(ValueError, match="act_head_bits=2 does nothing with model"):
        flexround.quantize(net, tokens, "rtn", bits=8, act_bits=8, options=options)


def test_candidates_of_a_search_that_does_not_clip_are_refused():
    options = {"clipping": False, "ranges.candidates": 40}
    with pytest.raises(ValueError, match=r"ranges\.candidates=40 does nothing with clipping=False"):
        flexround.quantize(mlp(8, 8, 4), samples(), "rtn", options=options)


def test_a_network_that_normalises_its_images_in_place_sees_them_once():
    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp(8, 16, 4)

        def forward(self, x):
            return self.layers(x.sub_(0.5).div_(0.1))

    net, given = Normalising().eval(), samples()
    before = given.clone()
    found = flexround.quantize(net, given, "flexround", bits=8, options=SHORT)
    assert torch.equal(given, before)
    with torch.no_grad():
        wanted = net(before.clone())
        assert (found.network(before.clone()) - wanted).norm() <= 0.02 * wanted.norm()


@pytest.mark.parametrize(
    ("arguments", "group", "chosen"),
    [
        ({"group_size": 8}, "granularity", "per_group"),
        ({"act_bits": 4}, "activation", "static_per_tensor"),
    ],
)
def test_an_argument_chooses_its_group_where_the_command_line_refuses_it(
    cli, arguments, group, chosen
):
    found = flexround.quantize(mlp(8, 8, 4), samples(), "rtn", 4, **arguments)
    assert found.settings[group] == chosen
    ((name, value),) = arguments.items()
    refused = cli(*TINY, "quant=rtn", f"{name}={value}")
    assert refused.status == 1
    assert f"{name}={value} does nothing with" in refused.err
    assert group in refused.err


def test_the_largest_seed_is_taken():
    found = flexround.quantize(mlp(8, 8, 4), samples(), "rtn", 4, seed=2**32 - 1)
    assert found.settings["seed"] == 2**32 - 1


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        # Codes of 8 * 16, 16 * 16 and 16 * 4 weights are 48 + 96 + 24 bytes; a scale has 4.
        ({}, 168 + 3 * 4),
        ({"granularity": "per_channel"}, 168 + (16 + 16 + 4) * 4),
        # Zero points of 3 bits, those of a layer together: 16, 16 and 4 of them.
        ({"symmetric": False, "granularity": "per_channel"}, 168 + 36 * 4 + 6 + 6 + 2),
    ],
    ids=["per tensor", "per channel", "asymmetric"],
)
def test_its_size_is_that_of_packed_codes_scales_and_zero_points(arguments, size):
    options = {"model.first_last_bits": None}
    net = mlp(8, 16, 16, 4)
    found = flexround.quantize(net, samples(), "rtn", 3, options=options, **arguments)
    assert (found.size.weights, found.size.bytes) == (448, size)
    assert found.size.bits == pytest.approx(8 * size / 448)
    assert f"3 layers at 3 bits, {8 * size / 448:.2f} bits a weight with scales" in repr(found)


def test_its_text_names_every_number_of_bits():
    net, options = mlp(8, 16, 16, 4), {"model.first_last_bits": 8}
    found = flexround.quantize(net, samples(), "rtn", 3, options=options)
    # 128 + 64 weights of 8 bits, 256 of 3, three scales.
    assert found.size.bytes == 128 + 64 + 96 + 3 * 4
    assert "3 layers at 3 and 8 bits, 5.36 bits a weight with scales" in repr(found)


def test_weights_that_are_left_stay_in_full_precision():
    net = mlp(8, 8, 4)
    found = flexround.quantize(net, samples(), "rtn", options={"model.leave": ["2"]})
    assert list(found.layers) == ["0"]
    assert torch.equal(found.network[2].weight, net[2].weight)
    assert found.coverage.left == ("2.weight",)


@pytest.mark.parametrize("module", [rules, call])
def test_its_examples_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_library_is_imported_without_torch_until_it_is_used():
    code = (
        "import sys, flexround; assert 'quantize' in dir(flexround); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_changes_the_presets():
    before = FILE.read_text()
    flexround.quantize(mlp(8, 8, 4), samples(), options=SHORT)
    assert presets.presets() == json.loads(before)


def test_settings_have_every_option_by_its_dotted_name() -> None:
    """Two calls at other rates are told apart."""
    settings = [
        flexround.quantize(
            mlp(8, 16, 4), samples(), "flexround", 4, options=SHORT | {"recon.lr": lr}
        ).settings
        for lr in (1e-3, 2e-3)
    ]
    told = {name for name in settings[0] if settings[0][name] != settings[1][name]}
    assert told == {"recon.lr"}
    assert settings[0]["recon"] == "block"
    assert settings[0]["recon.iters"] == 3
    assert settings[0]["model.leave"] == []


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda: nn.Conv1d(3, 6, 3), nn.BatchNorm1d, (3, 9)),
        (lambda: nn.Linear(8, 6), nn.BatchNorm1d, (8,)),
        (lambda: nn.Linear(8, 6), partial(nn.BatchNorm1d, affine=False), (8,)),
        (lambda: nn.Conv2d(3, 6, 3), nn.BatchNorm2d, (3, 9, 9)),
    ],
    ids=["Conv1d", "Linear", "no gain", "Conv2d"],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_norm_is_folded_into_what_feeds_it(
    layer: Callable[[], nn.Module],
    norm: Callable[[int], nn.Module],
    shape: tuple[int, ...],
    seed: int,
) -> None:
    """The weight on the grid is the one of both: w gamma / sqrt(var + eps).

    The search for the step may clip the largest weights: those lie at the grid's ends.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(layer(), norm(6), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(4))
    for _ in range(20):
        network(torch.randn(16, *shape) * 2 + 1)
    network.eval()
    found = flexround.quantize(network, samples(32, *shape), "rtn", 8)
    first, folded = network[0], network[1]
    gain = (folded.weight if folded.affine else 1.0) / (folded.running_var + folded.eps).sqrt()
    whole = first.weight * gain.reshape(-1, *[1] * (first.weight.dim() - 1))
    step = found.layers["0"].scale.item()
    reached = whole.clamp(-128 * step, 127 * step)
    assert (found.layers["0"].dequantize() - reached).abs().max() <= step * 0.501
    assert (whole != reached).float().mean() < 0.1


@pytest.mark.parametrize(
    "between", [nn.MaxPool2d(2), nn.GroupNorm(2, 6)], ids=["pooling", "a norm"]
)
def test_activations_behind_what_stands_between_are_quantized(between: nn.Module) -> None:
    """A unit runs its layer and the function right behind it; the next layer takes the rest."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), between, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(1), nn.LazyLinear(4)
    )
    network(torch.randn(2, 3, 12, 12))
    images = samples(32, 3, 12, 12)
    found = flexround.quantize(network, images, "rtn", 8, act_bits=2)
    taken: list[Tensor] = []
    layer = found.network[3]
    layer.register_forward_hook(lambda _, args, __: taken.append(args[0]))
    found.network(images)
    assert len(taken[0].unique()) <= 4  # two bits


def test_equal_samples_do_not_hide_a_skip() -> None:
    """A residual network stays one block each, whatever the first two samples are."""
    images = samples(32, 3, 12, 12)
    same = images.clone()
    same[1] = same[0]
    units = [
        [unit.name for unit in flexround.quantize(OwnNet(), x, options=SHORT).units]
        for x in (images, same)
    ]
    assert units[0] == units[1]


@pytest.mark.parametrize("rest", [1, 2])
def test_masks_beside_tokens_are_asked_for_by_name(rest: int) -> None:
    """A second tensor of the tokens' shape is no label, and padding would be learned as text."""
    ids = torch.ones(8, 16, dtype=torch.long)
    with pytest.raises(ValueError, match=r"given as a dict: \{'input_ids'"):
        flexround.quantize(mlp(8, 4), DataLoader(TensorDataset(ids, *[ids] * rest), 4))


def test_transforms_are_in_float32_whatever_the_caller_takes(monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    ids = torch.randint(0, 100, (8, 16), generator=torch.Generator().manual_seed(0))
    seen = []
    monkeypatch.setattr(
        "flexround.transforms.hadamard.Hadamard.__call__",
        lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32) or {},
    )
    with tensor_float32(True):
        flexround.quantize(net, ids, method="rtn", bits=4, options={"transform": "hadamard"})
        assert torch.backends.cuda.matmul.allow_tf32
    assert seen == [False]

"""Integers written to a file and read again are the frozen weights, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from flexround.activations.schemes import DynamicPerToken, StaticPerTensor
from flexround.artifact.artifact import Artifact, size_of, take
from flexround.artifact.bit_packing import pack, unpack
from flexround.artifact.file_format import check_storable, read, write
from flexround.artifact.header import DIGEST, KEY
from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor, QuantizedTensor
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from flexround.structure import Layer
from tests.flexround.models.test_language import EXAMPLE, FAMILIES, network, tokens
from tests.flexround.quantizers.methods import (
    METHODS,
    granularities,
    methods_on_layers,
    shaken,
    symmetries,
)
from tests.flexround.quantizers.methods import weight_of as layer_of
from tests.flexround.reconstruction.test_reconstruction import CPU, SETTING, adapter, calibration
from tests.flexround.solvers.test_solvers import GREEDY, PLAIN

BITS = range(2, 9)
NO_FACTS = {"threads": 1}
RTN = replace(SETTING, iters=0)


@given(st.data(), st.integers(2, 8))
def test_packing_is_a_little_endian_stream_of_bits(data, bits):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack(torch.tensor(codes, dtype=torch.int16), bits)
    whole = sum(code << i * bits for i, code in enumerate(codes))
    assert bytes(packed.tolist()) == whole.to_bytes(-(-len(codes) * bits // 8), "little")
    assert unpack(packed, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("bits", BITS)
def test_what_does_not_fit_is_not_packed_nor_unpacked(bits):
    for wrong in (-1, 2**bits):
        with pytest.raises(ValueError, match=f"do not fit {bits} bit"):
            pack(torch.tensor([0, wrong]), bits)
    packed = pack(torch.ones(3, dtype=torch.int64), bits)
    with pytest.raises(ValueError, match="4000 codes"):
        unpack(packed, bits, 4000)
    if 3 * bits % 8:
        packed[-1] |= 128
        with pytest.raises(ValueError, match="behind the last"):
            unpack(packed, bits, 3)


def named(layers):
    return Artifact(layers, dict.fromkeys(layers, "float32"), {}, {}, NO_FACTS)


def one(layer):
    return named({"layer": layer})


@granularities
@symmetries
@methods_on_layers
def test_codes_from_the_file_are_the_frozen_weight(method, make, granularity, symmetric, tmp_path):
    modules = {str(bits): layer_of(make) for bits in BITS}
    layers = {}
    for bits, module in modules.items():
        own = [Layer(bits, module)]
        (quantizer,) = attach(own, method, Grid(int(bits), symmetric, granularity), MinMax())
        shaken(quantizer, 0.05)
        layers |= freeze(own)
    write(named(layers), tmp_path / "it.safetensors")
    found = read(tmp_path / "it.safetensors").layers
    held = load_file(tmp_path / "it.safetensors")
    for bits, module in modules.items():
        assert torch.equal(found[bits].dequantize(), module.weight)
        assert found[bits].grid == Grid(int(bits), symmetric, granularity)
        assert held[f"{bits}.codes"].nbytes == -(-module.weight.numel() * int(bits) // 8)
        assert (f"{bits}.zero_point" in held) == (not symmetric)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(3)], ids=str)
@symmetries
@pytest.mark.parametrize("solver", [PLAIN, GREEDY], ids=["gptq", "cdquant"])
def test_so_are_the_solvers(solver, symmetric, granularity, tmp_path):
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 9, generator=draws)
    inputs = torch.randn(64, 9, generator=draws)
    hessian = (inputs.T @ inputs)[None]
    grids = {str(bits): Grid(bits, symmetric, granularity) for bits in BITS}
    layers = {b: solver.quantize(weight, hessian, grid, MinMax()) for b, grid in grids.items()}
    write(named(layers), tmp_path / "it.safetensors")
    found = read(tmp_path / "it.safetensors").layers
    for bits, layer in layers.items():
        assert torch.equal(found[bits].dequantize(), layer.dequantize())
        assert torch.equal(found[bits].codes, layer.codes.to(torch.int16))


@given(st.data())
def test_any_integers_come_back(tmp_path_factory, data):
    bits, symmetric = data.draw(st.integers(2, 8)), data.draw(st.booleans())
    out, group = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    kernel = data.draw(st.sampled_from([(), (1,), (3,), (3, 2)]))
    shape = torch.Size((out, group * data.draw(st.integers(1, 3)), *kernel))
    granularity = data.draw(st.sampled_from([PerTensor(), PerChannel(), PerGroup(group)]))
    draws = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    grid = Grid(bits, symmetric, granularity)
    codes = torch.randint(grid.qmin, grid.qmax + 1, shape, generator=draws).to(torch.int16)
    groups = len(granularity.group(codes))
    scale = torch.rand(groups, 1, generator=draws) + 1e-8
    zero_point = torch.randint(0, 2**bits, (groups, 1), generator=draws).float()
    held = QuantizedTensor(codes, scale, zero_point * (not symmetric), grid)
    path = tmp_path_factory.mktemp("any") / "it.safetensors"
    write(one(held), path)
    found = read(path).layers["layer"]
    for part in ("codes", "scale", "zero_point"):
        assert torch.equal(getattr(found, part), getattr(held, part))
        assert getattr(found, part).dtype == getattr(held, part).dtype
    on_disk = sum(t.nbytes for t in load_file(path).values())
    assert size_of(found).bytes == on_disk
    assert size_of(found).bits == 8 * on_disk / codes.numel()


def test_codes_off_their_grid_are_not_written(tmp_path):
    grid = Grid(3, True, PerTensor())
    ones = torch.ones(1, 1)
    held = QuantizedTensor(torch.tensor([[4]], dtype=torch.int16), ones, 0 * ones, grid)
    with pytest.raises(ValueError, match="layer layer: codes from 8 to 8 do not fit 3 bit"):
        write(one(held), tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match="layer layer: a symmetric grid with a zero point"):
        write(
            one(replace(held, codes=0 * held.codes, zero_point=ones)), tmp_path / "it.safetensors"
        )
    assert not list(tmp_path.iterdir())


class Whole:
    """A granularity of someone's own, which is no dataclass."""

    def group(self, weight):
        """Return weight as one group."""
        return weight.reshape(1, -1)


class Rows(PerChannel):
    """Another one, made of one of ours."""


@pytest.mark.parametrize("kind", [Whole, Rows])
def test_a_granularity_that_no_reader_knows_is_not_written(kind, tmp_path):
    grid = Grid(3, True, kind())
    words = rf"granularity={kind.__name__}: .*PerTensor, PerChannel, PerGroup; give save=false\Z"
    with pytest.raises(ValueError, match=r"\A" + words):
        check_storable(grid)
    codes = torch.zeros(2, 3, dtype=torch.int16)
    ones = torch.ones(len(grid.granularity.group(codes)), 1)
    with pytest.raises(ValueError, match=r"\Alayer layer: " + words):
        write(one(QuantizedTensor(codes, ones, 0 * ones, grid)), tmp_path / "it.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_class_that_takes_the_name_of_one_of_ours_is_another():
    own = type("PerChannel", (Whole,), {})
    with pytest.raises(ValueError, match="granularity=PerChannel: an artifact holds"):
        check_storable(Grid(3, True, own()))


@granularities
@symmetries
def test_what_is_read_can_be_written(granularity, symmetric):
    check_storable(Grid(3, symmetric, granularity))


def quantized(target, samples, activation=None, recon=RTN, method=METHODS["rtn"], symmetric=False):
    integers = recon(
        target, samples, quantizer=method, grid=Grid(3, symmetric, PerChannel()), ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), activation=activation,
    )  # fmt: skip
    return take(target, integers, NO_FACTS)


STATIC = StaticPerTensor(4, True, 4, 8, None, 8, "quant")
SETTINGS = {
    "rtn": (RTN, METHODS["rtn"], None),
    "static": (RTN, METHODS["rtn"], STATIC),
    "learned": (replace(SETTING, iters=5, act_steps="together"), METHODS["flexround"], STATIC),
    "solver": (Solve(8, sequential=True), PLAIN, STATIC),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_restored_classifier_is_the_quantized_one(case, tmp_path):
    recon, method, activation = SETTINGS[case]
    target, images = adapter(), calibration()
    write(quantized(target, images, activation, recon, method), tmp_path / "it.safetensors")
    other = adapter()
    for parameter in other.model.parameters():
        parameter.data.zero_()
    read(tmp_path / "it.safetensors").restore(other)
    assert torch.equal(other.forward(images[0]), target.forward(images[0]))
    assert (other.activations is None) == (activation is None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "activation",
    [
        None,
        DynamicPerToken(8, None),
        DynamicPerToken(4, 8),
        StaticPerTensor(8, False, 8, 8, 4, 6, "quant"),
    ],
    ids=["weights", "tokens", "tokens_kv", "static_kv"],
)
def test_a_restored_transformer_is_the_quantized_one(family, activation, tmp_path):
    if activation is not None and activation.kv_bits and family in ("gpt2", "bert"):
        pytest.skip("no key and value layers of their own")
    target = LanguageAdapter(network(family), EXAMPLE, CPU)
    write(quantized(target, [tokens()], activation), tmp_path / "it.safetensors")
    other = LanguageAdapter(network(family), EXAMPLE, CPU)
    for parameter in other.model.parameters():
        parameter.data.zero_()
    read(tmp_path / "it.safetensors").restore(other)
    assert torch.equal(other.forward(tokens()), target.forward(tokens()))


def test_half_precision_stays_half(tmp_path):
    target = LanguageAdapter(network("llama", torch.bfloat16), EXAMPLE, CPU)
    write(quantized(target, [tokens()]), tmp_path / "it.safetensors")
    other = LanguageAdapter(network("llama"), EXAMPLE, CPU)
    read(tmp_path / "it.safetensors").restore(other)
    assert {p.dtype for p in other.model.parameters()} == {torch.bfloat16}
    assert torch.equal(other.forward(tokens()), target.forward(tokens()))


def sorted_values(tensor):
    """Return the values whatever the shape, so that a turned copy is found too."""
    return tensor.flatten().float().sort().values


def test_no_float_copy_of_a_quantized_weight_is_kept(tmp_path):
    target = LanguageAdapter(network("gpt2"), EXAMPLE, CPU)
    write(quantized(target, [tokens()]), tmp_path / "it.safetensors")
    held = load_file(tmp_path / "it.safetensors")
    layers = [layer for block in target.blocks() for layer in block.layers]
    for layer in layers:
        assert f"{layer.name}.weight" not in held
        weight = sorted_values(layer.module.weight)
        assert not [name for name, t in held.items() if torch.equal(sorted_values(t), weight)]
    assert any(torch.equal(sorted_values(t), sorted_values(target.model.transformer.wpe.weight))
               for t in held.values())  # fmt: skip
    assert "transformer.wte.weight" in held
    assert "lm_head.weight" not in held, "it is the embedding, kept once"


# Bad input.


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "it.safetensors"
    write(quantized(adapter(), calibration(), STATIC), path)
    return path


def refuses(path, *words):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        read(path)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated(sound, keep):
    sound.write_bytes(sound.read_bytes()[:keep])
    refuses(sound, "damaged")


def test_any_flipped_bit_is_noticed(sound):
    data = sound.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        sound.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        refuses(sound, str(sound))


def rewritten(path, change, tensors=None):
    """Write path again with another header, its digest in order."""
    from flexround.artifact.file_format import _digest

    held = load_file(path) if tensors is None else tensors
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[KEY])
    change(header)
    text = json.dumps(header)
    save_file(held, path, {KEY: text, DIGEST: _digest(text, held)})


def first(**facts):
    return lambda header: header["layers"]["2.conv1"].update(facts)


def without(header):
    del header["layers"]["2.conv1"]["bits"]


CHANGES = {
    "bits": (first(bits=4), ["layer 2.conv1: 324 codes of 4 bit are 162 bytes, not [122]"]),
    "no_bits": (without, ["bits"]),
    "many_bits": (first(bits=9), ["layer 2.conv1: bits=9"]),
    "shape": (first(shape=[6, 6, 3, 4]), ["layer 2.conv1: 432 codes"]),
    "symmetric": (first(symmetric=True), []),  # what is left over is no tensor of the network's
    "granularity": (first(granularity="PerTensor"), ["layer 2.conv1: scales [6, 1], 1 groups"]),
    "unknown": (first(granularity="PerMoon"), ["PerMoon"]),
    "layer": (lambda h: h["layers"].update(x=h["layers"]["2.conv1"]), ["x.scale", "does not hold"]),
    "site": (lambda h: h["sites"].update(x=h["sites"]["1.output"]), ["x.act_scale"]),
    "format": (lambda h: h.update(format=3), ["of format 3, this version reads 1"]),
    "list": (lambda h: h.update(layers=[]), ["header"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_header_that_is_not_its_tensors(sound, case):
    change, words = CHANGES[case]
    rewritten(sound, change)
    if words:
        refuses(sound, *words)
        return
    with pytest.raises(ValueError, match=r"another model's: tensor 2\.conv1\.zero_point is \[3\]"):
        read(sound).restore(adapter())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none(sound, value):
    held = load_file(sound)
    held["2.conv1.scale"][3] = value
    rewritten(sound, lambda header: None, held)
    refuses(sound, "layer 2.conv1: a scale that is 0, negative or not finite")


def test_another_models(sound):
    artifact = read(sound)
    wider = adapter()
    wider.model[6] = nn.Linear(6, 5)
    wider._blocks[-1] = replace(wider._blocks[-1], layers=[Layer("6", wider.model[6], 8)])
    with pytest.raises(ValueError, match=r"model's: layer 6 is \[4, 6\] in it and \[5, 6\]"):
        artifact.restore(wider)
    with pytest.raises(ValueError, match="another model's: layer 0 is"):
        artifact.restore(LanguageAdapter(network("opt"), EXAMPLE, CPU))
    fewer = replace(artifact, sites=dict(list(artifact.sites.items())[1:]))
    with pytest.raises(ValueError, match=r"only the network has the activation 1\.output"):
        fewer.restore(adapter())


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin", "x.pkl", "x.ckpt"])
def test_pickles_are_not_opened(tmp_path, name):
    torch.save({"layer": torch.ones(1)}, tmp_path / name)
    refuses(tmp_path / name, "a pickle runs code when loaded")


def test_what_is_no_artifact(tmp_path):
    refuses(tmp_path, "no artifact", "save=true")
    refuses(tmp_path / "nowhere", "no artifact")
    save_file({"a": torch.ones(1)}, tmp_path / "flexround.safetensors")
    refuses(tmp_path, "but no artifact")
    torch.save({"layer": torch.ones(1)}, tmp_path / "flexround.safetensors")
    refuses(tmp_path, "damaged")

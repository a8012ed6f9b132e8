"""Artifacts of weights on tables of levels: what is written, and what reading refuses."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from flexround.artifact.artifact import Artifact, size_of
from flexround.artifact.bit_packing import unpack
from flexround.artifact.file_format import check_storable, read, write
from flexround.grid import Grid, PerGroup
from flexround.levels import BY_NAME, FP4, NF4
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from tests.flexround.artifact.test_artifact import refuses, rewritten

GROUPS = PerGroup(32)
levels = pytest.mark.parametrize("name", BY_NAME)


def quantized(kind):
    """Return the integers of a weight whose scales reach over many powers of two."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 64, generator=draws) * torch.logspace(-9, 9, 12, 2.0)[:, None]
    return RTN(weight, grid=Grid(4, True, GROUPS, kind()), ranges=MinMax()).finalize(weight)


@pytest.fixture
def written(tmp_path):
    """Return a function that writes an artifact of one layer on a table: its path, its integers."""

    def make(name):
        path, layer = tmp_path / "it.safetensors", quantized(BY_NAME[name])
        write(Artifact({"a": layer}, {"a": "float32"}, {}, {}, {}), path)
        return path, layer

    return make


@levels
def test_codes_and_scales_come_back_to_the_last_bit(written, name):
    path, layer = written(name)
    back = read(path).layers["a"]
    assert back.grid == layer.grid
    assert torch.equal(back.codes, layer.codes)
    assert torch.equal(back.scale, layer.scale)
    assert torch.equal(back.dequantize(), layer.dequantize())


@levels
def test_the_file_by_its_description(written, name):
    """docs/artifacts.md: codes are places in the ascending table, exponents have a bias of 127."""
    path, layer = written(name)
    held = load_file(path)
    places = unpack(held["a.codes"], 4, 12 * 64).view(24, 32)
    scale = held["a.scale"]
    if name == "mxfp4":
        assert scale.dtype == torch.uint8
        scale = torch.tensor([[math.ldexp(1.0, int(e) - 127)] for e in scale])
    table = torch.tensor(BY_NAME[name].values)
    assert torch.equal(table[places.long()] * scale, layer.dequantize().view(24, 32))
    assert size_of(layer).bytes == held["a.codes"].nbytes + held["a.scale"].nbytes
    assert size_of(layer).bits == (4.25 if name == "mxfp4" else 5)


def change(**facts):
    return lambda header: header["layers"]["a"].update(facts)


CHANGES = {
    "unknown": ("nf4", change(levels="nf5"), ["layer a: levels 'nf5'", "nf4, fp4, mxfp4"]),
    "list": ("nf4", change(levels=["nf4"]), ["layer a: levels"]),
    "bits": ("nf4", change(bits=3), ["grid=nf4 has codes of 4 bits"]),
    "zero_point": ("nf4", change(symmetric=False), ["grid=nf4 has no zero point"]),
    "groups": ("fp4", change(levels="mxfp4"), ["layer a: scales that are no exponents"]),
    "exponents": ("mxfp4", change(levels="fp4"), ["layer a: scales"]),
    "beyond": ("nf4", change(levels="fp4"), ["layer a: a code beyond the levels of fp4"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_header_that_is_not_its_tensors(written, case):
    name, changed, words = CHANGES[case]
    path, _ = written(name)
    rewritten(path, changed)
    refuses(path, *words)


def test_an_exponent_that_is_no_number(written):
    path, _ = written("mxfp4")
    held = load_file(path)
    held["a.scale"][3] = 255
    rewritten(path, lambda header: None, held)
    refuses(path, "layer a: a scale that is 0, negative or not finite")


@levels
def test_the_tables_of_the_format_are_storable(name):
    check_storable(Grid(4, True, GROUPS, BY_NAME[name]()))


def test_a_table_that_the_format_does_not_know_is_not_written(tmp_path):
    class Own(FP4):
        name = "own"

    layer = quantized(Own)
    with pytest.raises(ValueError, match=r"\Agrid=own: an artifact .* give save=false\Z"):
        check_storable(layer.grid)
    with pytest.raises(ValueError, match="grid=own: an artifact holds nf4, fp4, mxfp4"):
        write(Artifact({"a": layer}, {"a": "float32"}, {}, {}, {}), tmp_path / "it.safetensors")
    assert quantized(NF4).grid != layer.grid

"""Ranges by the error that inputs weigh, and SignRound's second version from there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flexround import importance
from flexround.grid import Grid, PerChannel, PerGroup
from flexround.importance import ImportanceSearch
from flexround.levels import NF4
from flexround.quantizers.rtn import RTN
from flexround.quantizers.signround import SignRound, SignRoundV2
from flexround.reconstruction import layer_ranges
from tests.flexround.models.test_language import EXAMPLE, network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import CPU, SETTING, adapter, calibration

BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])
GRANULARITY = pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(16)], ids=str)


def case(granularity, seed=0):
    """Return a weight [out, in], its groups, squares of inputs [in], and those of each group."""
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, 64, generator=draws) * 0.05
    squares = torch.rand(64, generator=draws) * 10
    spread = granularity.group(squares.expand(24, -1).contiguous())
    return weight, granularity.group(weight), squares, spread


@BITS
@GRANULARITY
def test_no_scale_of_the_search_errs_less(bits, granularity):
    _, rows, squares, spread = case(granularity)
    scale, zero = ImportanceSearch(squares)(rows, Grid(bits, True, granularity))
    most = 2 ** (bits - 1)
    if bits == 2:
        tried = [2 - 0.01 * i for i in range(-90, 91)]
    else:
        tried = [most * (1 - 0.0075 * i) for i in range(-100, 101)]
    largest = torch.stack([row[row.abs().argmax()] for row in rows])[:, None]

    def error(own):
        codes = torch.round(rows / own).clamp(-most, most - 1)
        return ((own * codes - rows) ** 2 * spread).sum(1)

    best = torch.stack([error(-largest / divisor) for divisor in tried]).amin(0)
    torch.testing.assert_close(error(scale), best)
    assert not zero.any()
    plain, _ = ImportanceSearch()(rows, Grid(bits, True, granularity))
    assert (plain != scale).any(), "inputs count"


@BITS
@GRANULARITY
def test_auto_round_has_the_same_scales(bits, granularity):
    theirs = pytest.importorskip("auto_round.data_type.int").search_scales
    _, rows, squares, spread = case(granularity)
    scale, _ = ImportanceSearch(squares)(rows, Grid(bits, True, granularity))
    torch.testing.assert_close(scale, theirs(rows, bits, spread))


@BITS
@GRANULARITY
def test_the_second_version_starts_at_round_to_nearest_and_may_grow(bits, granularity):
    weight, rows, squares, _ = case(granularity)
    grid, search = Grid(bits, True, granularity), ImportanceSearch(squares)
    scale, _ = search(rows, grid)
    quantizer = SignRoundV2(weight, grid=grid, ranges=search)
    torch.testing.assert_close(quantizer.dequantization_scale(), scale)
    torch.testing.assert_close(quantizer(weight), RTN(weight, grid=grid, ranges=search)(weight))
    for made, most in ((quantizer, 2.0), (SignRound(weight, grid=grid, ranges=search), 1.0)):
        with torch.no_grad():
            made.alpha.fill_(9.0)
            made.beta.fill_(9.0)
        made.after_step()
        torch.testing.assert_close(made.dequantization_scale(), most * scale)


@BITS
@GRANULARITY
def test_every_learned_method_starts_at_round_to_nearest_on_signed_scales(bits, granularity):
    weight, _, squares, _ = case(granularity)
    grid, search = Grid(bits, True, granularity), ImportanceSearch(squares)
    start = RTN(weight, grid=grid, ranges=search).finalize(weight)
    assert (start.scale < 0).any()
    for name, method in METHODS.items():
        if name in ("lwc", "flexround_lwc"):
            with pytest.raises(ValueError, match="zero in its middle"):
                method(weight, grid=grid, ranges=search)
            continue
        quantizer = method(weight, grid=grid, ranges=search)
        quantizer.hard = True
        torch.testing.assert_close(quantizer.dequantization_scale(), start.scale)
        torch.testing.assert_close(quantizer(weight), start.dequantize(), msg=name)


@pytest.mark.parametrize(
    "grid", [Grid(4, False, PerChannel()), Grid(4, True, PerChannel(), NF4())], ids=["zero", "nf4"]
)
def test_a_grid_with_a_zero_point_or_a_table_is_refused(grid):
    with pytest.raises(ValueError, match="ranges=imatrix is for symmetric integers"):
        ImportanceSearch()(torch.randn(4, 16), grid)


def test_the_squares_are_those_of_full_precision_inputs(monkeypatch):
    from flexround.models.language_adapter import LanguageAdapter

    pytest.importorskip("transformers", reason="the extra language is not installed")
    seen, real = {}, layer_ranges._squares

    def keep(*args):
        found = real(*args)
        seen.update(found)
        return found

    monkeypatch.setattr(layer_ranges, "_squares", keep)
    batch, expected = tokens(), {}
    plain, handles = network("llama"), []
    for name, module in plain.named_modules():
        if name.endswith("_proj"):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: expected.update({name: args[0].square().sum((0, 1))})
                )
            )
    with torch.no_grad():
        plain(**batch)
    for handle in handles:
        handle.remove()
    target = LanguageAdapter(plain, EXAMPLE, CPU)
    replace(SETTING, batch_size=3, iters=2)(
        target, [batch], quantizer=SignRoundV2, grid=Grid(2, True, PerGroup(16)),
        ranges=ImportanceSearch(), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert seen.keys() == expected.keys()
    for name, squares in seen.items():
        torch.testing.assert_close(
            squares, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_convolution_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layer [\w.]+: ranges=imatrix is for linear layers"):
        replace(SETTING, iters=0)(
            adapter(), calibration(), quantizer=RTN, grid=Grid(4, True, PerChannel()),
            ranges=ImportanceSearch(), generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


def test_a_gpu_searches_in_pieces_that_are_worth_a_launch(monkeypatch):
    """32 times the CPU's; meta tensors stand for those of a GPU."""
    seen = []
    monkeypatch.setattr(importance, "_best", lambda v, *_: seen.append(len(v)) or v[:, :1])
    for device, pieces in (("cpu", [2, 2, 1]), ("meta", [5])):
        seen.clear()
        ImportanceSearch()(torch.empty(5, 1 << 19, device=device), Grid(2, True, PerChannel()))
        assert seen == pieces

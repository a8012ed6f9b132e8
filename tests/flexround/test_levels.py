"""Tables of levels, held to their own papers' and specification's words."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexround.grid import Grid, PerChannel, PerGroup
from flexround.levels import BY_NAME, FP4, MXFP4, NF4, gaps, neighbours
from flexround.ranges import LpSearch, MinMax

LEVELS = {name: kind() for name, kind in BY_NAME.items()}
tables = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


def grid_on(levels, group=32):
    return Grid(4, True, PerGroup(32 if levels.block else group), levels)


def weights(rows=64, columns=64, seed=0, dtype=torch.float32):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draws).to(dtype) * 0.05


def test_nf4_are_the_quantiles_of_a_normal_distribution():
    """QLoRA's code, create_normal_map: even probabilities from offset to 1/2 on either side."""
    offset, quantile = 0.9677083, NormalDist().inv_cdf

    def side(count):
        return [quantile(offset + (0.5 - offset) * i / count) for i in range(count)]

    raw = sorted([*side(8), 0.0, *(-q for q in side(7))])
    assert len(NF4.values) == 16
    for ours, theirs in zip(NF4.values, raw, strict=True):
        assert ours == pytest.approx(theirs / max(raw), abs=2e-7)


def test_fp4_are_the_numbers_of_one_sign_two_exponent_and_one_mantissa_bit():
    found = set()
    for code in range(16):
        sign, exponent, mantissa = (-1) ** (code >> 3), code >> 1 & 3, code & 1
        size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
        found.add(sign * size)
    assert tuple(sorted(found)) == FP4.values == MXFP4.values


@tables
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_nearest_level_by_brute_force(levels, dtype):
    grid, values = grid_on(levels), weights(dtype=dtype) * 40
    rows = grid.granularity.group(values)
    scale = torch.rand(len(rows), 1, dtype=dtype) + 0.5
    found = grid.nearest(rows, scale, torch.zeros_like(scale))
    every = torch.tensor(levels.values, dtype=torch.float64) * scale[..., None].double()
    least = (rows[..., None].double() - every).abs().amin(-1)
    error = (rows.double() - found.double()).abs()
    assert (error - least).max() < (1e-6 if dtype == torch.float32 else 1e-15)
    assert (error > 0.1).any(), "some are beyond the ends"


@given(st.floats(-9, 9, width=32))
def test_e2m1_rounds_half_to_even_as_the_specification_asks(value):
    """Sec. 6.3: roundTiesToEven, the mantissa's last bit 0; saturating."""
    one = torch.tensor([[value]])
    grid = Grid(4, True, PerChannel(), FP4())
    found = grid.nearest(one, torch.ones(1, 1), torch.zeros(1, 1)).item()
    size = min(abs(value), 6.0)
    exponent = max(0, math.frexp(size)[1] - 1) if size else 0
    unit = 2.0**exponent / 2
    assert found == math.copysign(round(size / unit) * unit, value)


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(6.0, 1.0), (7.99, 1.0), (4.0, 1.0), (3.99, 0.5), (1.0, 0.25), (8.0, 2.0), (0.75, 0.125)],
)
def test_a_microscaling_block_has_the_specifications_scale(largest, scale):
    """Sec. 6.3: the largest power of two at most max|w|, over that of E2M1, which is 4."""
    values = torch.zeros(1, 32)
    values[0, 3] = -largest
    found, zero = MinMax()(values, grid_on(MXFP4()))
    assert found.item() == scale
    assert zero.item() == 0


@pytest.mark.parametrize("exponent", range(-20, 21))
def test_powers_of_two_are_exact(exponent):
    size = torch.tensor([[2.0**exponent], [2.0 ** (exponent + 1) * (1 - 2.0**-23)]])
    assert MXFP4().cover(size).tolist() == [[2.0 ** (exponent - 2)]] * 2
    assert torch.equal(MXFP4().admitted(size), 2.0**exponent * torch.tensor([[1.0], [2.0]]))


@tables
def test_min_max_covers_the_largest_weight_exactly(levels):
    values = weights()
    rows = grid_on(levels).granularity.group(values)
    scale, _ = MinMax()(rows, grid_on(levels))
    largest = rows.abs().amax(1, keepdim=True)
    if levels.powers:
        assert ((largest / scale >= 4) & (largest / scale < 8)).all()
    else:
        torch.testing.assert_close(scale * max(levels.values), largest)


@tables
def test_a_search_finds_the_best_of_all_its_scales(levels):
    grid = grid_on(levels)
    rows = grid.granularity.group(weights(128))
    search = LpSearch(2.4, 80, 0.01)
    scale, zero = search(rows, grid)
    slow, _ = search.reference(rows, grid)
    assert torch.equal(scale, slow)
    widest, _ = MinMax()(rows, grid)

    def error(own):
        return (grid.nearest(rows, own, zero) - rows).abs().pow(2.4).sum(1)

    shares = [2.0, 1.0, 0.5, 0.25] if levels.powers else [1 - 0.01 * k for k in range(80)]
    best = torch.stack([error(widest * share) for share in shares]).amin(0)
    torch.testing.assert_close(error(scale), best)
    assert (scale != widest).any()


@tables
def test_neighbours_and_gaps(levels):
    values = torch.linspace(levels.values[0] * 1.5, levels.values[-1] * 1.5, 400)
    table = levels.table(values)
    lower, gap = neighbours(values, table)
    for value, low, own, wide in zip(
        values.tolist(), lower.tolist(), gap.tolist(), gaps(values, table).tolist(), strict=True
    ):
        held = [(a, b) for a, b in pairwise(table.levels.tolist()) if a <= value < b]
        if held:
            assert (low, own) == pytest.approx((held[0][0], held[0][1] - held[0][0]))
            assert wide == pytest.approx(own)
        else:
            assert low == pytest.approx(levels.values[0 if value < 0 else -1])
            assert own == 0 < wide


@tables
def test_other_bits_zero_points_and_groups_are_refused(levels):
    own = grid_on(levels).granularity
    with pytest.raises(ValueError, match=f"grid={levels.name} has codes of 4 bits, not bits=3"):
        Grid(3, True, own, levels)
    with pytest.raises(ValueError, match=f"grid={levels.name} has no zero point"):
        Grid(4, False, own, levels)
    if levels.block:
        with pytest.raises(ValueError, match="granularity=per_group group_size=32"):
            Grid(4, True, PerGroup(64), levels)


def test_mxfp4_is_torchaos():
    torchao = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    from torchao.prototype.mx_formats.config import ScaleCalculationMode

    values = weights(64, 128)
    theirs = torchao.MXTensor.to_mx(
        values, torch.float4_e2m1fn_x2, 32, scaling_mode=ScaleCalculationMode.FLOOR
    ).dequantize(torch.float32)
    grid = grid_on(MXFP4())
    rows = grid.granularity.group(values)
    assert torch.equal(grid.nearest(rows, *MinMax()(rows, grid)).view_as(values), theirs)

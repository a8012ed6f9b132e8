"""How scales are first chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.kernels.range_search import Roots, power
from flexround.ranges import SCALE_FLOOR, LpSearch, LpSearch2D, MinMax
from flexround.utils.threads import computing_on
from tests.conftest import some_slow
from tests.flexround.quantizers.methods import all_ranges, symmetries


def error(values, scale, zero_point, grid, p):
    """Return sum |w - w_hat|^p of each row, written out plainly."""
    code = torch.clamp(torch.round(values / scale) + zero_point, grid.qmin, grid.qmax)
    return (values - scale * (code - zero_point)).abs().pow(p).sum(dim=1)


def values_of(rows=3, elements=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, elements, generator=generator, dtype=torch.float64) + 0.3


def test_symmetric_min_max_is_twice_the_largest_over_the_steps():
    values = values_of()
    scale, zero_point = MinMax()(values, Grid(3, True, PerChannel()))
    torch.testing.assert_close(scale[:, 0], 2 * values.abs().amax(1) / 7)
    assert not zero_point.any()


def test_asymmetric_min_max_covers_all_values_and_zero():
    values = values_of()
    values[0] += 100  # all positive: zero must still be a level
    grid = Grid(4, False, PerChannel())
    scale, zero_point = MinMax()(values, grid)
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    torch.testing.assert_close(scale[:, 0], (high - low) / 15)
    assert torch.equal(zero_point, zero_point.round())
    assert ((zero_point >= 0) & (zero_point <= 15)).all()
    assert error(values, scale, zero_point, grid, 1).max() < 400 * scale.max()


@symmetries
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("p", [2.0, 2.4])
def test_the_search_finds_the_best_of_its_candidates(symmetric, bits, p):
    values = values_of()
    grid = Grid(bits, symmetric, PerChannel())
    widest, zero_point = MinMax()(values, grid)
    errors = torch.stack(
        [error(values, widest * (1 - 0.01 * i), zero_point, grid, p) for i in range(80)]
    )
    scale, _ = LpSearch(p, 80, 0.01)(values, grid)
    best = widest[:, 0] * (1 - 0.01 * errors.argmin(dim=0))
    torch.testing.assert_close(scale[:, 0], best)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, 2.0, -3.0, 8.0])
def test_the_search_in_two_dimensions_finds_the_best_of_all_pairs(bits, shift):
    """By brute force over every scale and every code as the zero point."""
    values = values_of(4, 120).pow(3) + shift
    grid = Grid(bits, False, PerChannel())
    widest, middle = MinMax()(values, grid)
    best, one = (torch.full((4,), torch.inf, dtype=values.dtype) for _ in range(2))
    for i in range(80):
        scale = widest * (1 - 0.01 * i)
        one = torch.minimum(one, error(values, scale, middle, grid, 2.4))
        for z in range(2**bits):
            zero = torch.full_like(scale, z)
            best = torch.minimum(best, error(values, scale, zero, grid, 2.4))
    found = error(values, *LpSearch2D(2.4, 80, 0.01)(values, grid), grid, 2.4)
    torch.testing.assert_close(found, best)
    assert (best <= one).all()


def test_one_end_can_be_clipped_alone():
    """One value far below, all others above zero: with one share for both ends one of them pays."""
    values = torch.cat([torch.linspace(0, 3, 200), torch.tensor([-3.0])])[None].double()
    grid = Grid(3, False, PerChannel())
    one, two = LpSearch(2.4, 80, 0.01), LpSearch2D(2.4, 80, 0.01)
    errors = [error(values, *search(values, grid), grid, 2.4) for search in (one, two)]
    assert errors[1] < 0.8 * errors[0]
    low, high = two.ends(values, grid)
    assert -low / 3 < 0.8 * high / 3


def test_a_wide_grid_is_searched_as_well():
    """8 bits, where 256 zero points for each scale are not all tried."""
    values, grid = values_of(2, 60) + 1, Grid(8, False, PerChannel())
    search = LpSearch2D(2.0, 5, 0.1)
    widest, _ = MinMax()(values, grid)
    pairs = [
        error(values, widest * (1 - 0.1 * i), torch.full_like(widest, z), grid, 2.0)
        for i in range(5)
        for z in range(256)
    ]
    found = error(values, *search(values, grid), grid, 2.0)
    torch.testing.assert_close(found, torch.stack(pairs).amin(0))


@symmetries
@pytest.mark.parametrize(
    "ranges",
    [MinMax(), LpSearch(2.4, 80, 0.01), LpSearch2D(2.4, 80, 0.01)],
    ids=["minmax", "1d", "2d"],
)
def test_the_ends_are_those_of_the_scale_and_zero_point(ranges, symmetric):
    values, grid = values_of() + 0.5, Grid(3, symmetric, PerChannel())
    low, high = ranges.ends(values, grid)
    scale, zero_point = ranges(values, grid)
    assert (low <= 0).all()
    assert (high >= 0).all()
    if symmetric:
        torch.testing.assert_close(2 * torch.maximum(-low, high) / 7, scale)
    else:
        torch.testing.assert_close((high - low) / 7, scale)
        assert torch.equal(torch.round(-low / scale), zero_point)


def test_without_a_zero_point_there_is_one_dimension():
    values, grid = values_of(), Grid(3, True, PerChannel())
    both = [search(2.4, 80, 0.01)(values, grid) for search in (LpSearch, LpSearch2D)]
    assert torch.equal(both[0][0], both[1][0])
    assert not both[1][1].any()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    rows=st.integers(1, 5),
    elements=st.integers(1, 90),
)
def test_the_search_is_never_worse_than_min_max(seed, bits, symmetric, rows, elements):
    values = values_of(rows, elements, seed)
    grid = Grid(bits, symmetric, PerChannel())
    searched = error(values, *LpSearch(2.4, 80, 0.01)(values, grid), grid, 2.4)
    assert (searched <= error(values, *MinMax()(values, grid), grid, 2.4) * (1 + 1e-9)).all()


@all_ranges
@symmetries
def test_a_channel_of_zeros_stays_zero(ranges, symmetric):
    """Nine channels of MobileNetV2 are all zero once BatchNorm is folded."""
    values = torch.stack([torch.zeros(16), torch.randn(16)])
    grid = Grid(4, symmetric, PerChannel())
    scale, zero_point = ranges(values, grid)
    assert scale.min() == SCALE_FLOOR
    code = grid.encode(values, scale, zero_point)
    assert torch.equal((code - zero_point)[0] * scale[0], torch.zeros(16))
    assert torch.isfinite((code - zero_point) * scale).all()


@pytest.mark.parametrize(
    ("p", "candidates", "step"),
    [
        (0, 80, 0.01),
        (float("nan"), 80, 0.01),
        (float("inf"), 80, 0.01),
        (2.4, 0, 0.01),
        (2.4, 101, 0.01),
        (2.4, 80, -0.01),
        (2.4, 80, float("nan")),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(p, candidates, step):
    with pytest.raises(ValueError, match=r"ranges\."):
        LpSearch(p, candidates, step)


def test_chunks_do_not_change_the_search(monkeypatch):
    values, grid = values_of(1, 5000), Grid(3, True, PerTensor())
    whole = LpSearch(2.4, 80, 0.01)(values, grid)
    monkeypatch.setattr("flexround.ranges.CHUNK", 64)
    assert torch.equal(whole[0], LpSearch(2.4, 80, 0.01)(values, grid)[0])


def weights(kind, rows, elements, seed):
    """Return float32 weights [rows, elements] on which candidates are hard to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, elements, generator=generator)
    if kind == "on a grid":  # errors of 0 and ties
        values = torch.round(values * 2) / 4
    elif kind == "heavy":
        values = values.pow(5)
    elif kind == "signs":  # all candidates lose the same of every value
        values = values.sign()
    elif kind == "tiny":  # p-th powers beyond what float32 holds
        values = values * 1e-14
    elif kind == "huge":
        values = values * 1e17
    values[:: max(2, rows // 3)] = 0
    return values


KINDS = ("gaussian", "on a grid", "heavy", "signs", "tiny", "huge")


@symmetries
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", some_slow([0.7, 1.0, 2.0, 2.4, 9.0], [1.0, 9.0]))
def test_the_search_with_fewer_tries_finds_the_same_bits(symmetric, kind, p):
    for shape, granularity in (
        ((40, 64), PerGroup(16)), ((7, 300), PerChannel()), ((1, 70_000), PerTensor())
    ):  # fmt: skip
        for bits, search in ((2, LpSearch(p, 80, 0.01)), (4, LpSearch(p, 7, 0.1))):
            grid = Grid(bits, symmetric, granularity)
            values = granularity.group(weights(kind, *shape, seed=bits))
            for found, plain in zip(
                search(values, grid), search.reference(values, grid), strict=True
            ):
                assert torch.equal(found, plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elements", [1, 2, 3])
def test_candidates_that_err_alike_are_told_apart_as_by_trying_them_all(kind, elements):
    """In short rows of float32 ties are exact: one digit of one power would decide otherwise."""
    grid, search = Grid(3, True, PerChannel()), LpSearch(2.4, 14, 0.01)
    for seed in range(60):
        values = weights(kind, 40, elements, seed)
        assert torch.equal(search(values, grid)[0], search.reference(values, grid)[0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_power_is_alike_wherever_its_value_stands(threads, dtype):
    with computing_on(threads):
        values = torch.randn(70_032, generator=torch.Generator().manual_seed(0)).to(dtype)
        whole = power(values.clone(), 2.4)
        for start, stop in ((0, 1), (0, 50_032), (1, 70_000), (63, 200), (70_000, 70_032)):
            assert torch.equal(power(values[start:stop].clone(), 2.4), whole[start:stop])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    rows=st.integers(1, 60),
    elements=st.integers(1, 130),
    candidates=st.integers(1, 90),
)
def test_whatever_the_weights_the_search_finds_the_same_bits(
    seed, kind, bits, symmetric, rows, elements, candidates
):
    values, grid = weights(kind, rows, elements, seed), Grid(bits, symmetric, PerChannel())
    search = LpSearch(2.4, candidates, 0.01)
    for found, plain in zip(search(values, grid), search.reference(values, grid), strict=True):
        assert torch.equal(found, plain)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_end_as_with_every_candidate(bad):
    values, grid = values_of().float(), Grid(4, False, PerChannel())
    values[1, 3] = bad
    search = LpSearch(2.4, 80, 0.01)
    for found, plain in zip(search(values, grid), search.reference(values, grid), strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=0, equal_nan=True)


def test_the_bound_holds_and_leaves_most_candidates_out(monkeypatch):
    """root(t) >= (root(b) - k |w|) / (1 + k), k = |b - t| / t, between any two candidates."""
    values, grid = weights("gaussian", 8, 64, 0).double(), Grid(3, False, PerChannel())
    widest, zero_point = MinMax()(values, grid)
    scales = (widest * (1 - 0.01 * torch.arange(80, dtype=torch.double))).clamp(min=SCALE_FLOOR)
    roots = torch.stack(
        [error(values, scales[:, i : i + 1], zero_point, grid, 2.4) for i in range(80)], dim=1
    ).pow(1 / 2.4)
    norms = values.abs().pow(2.4).sum(1).pow(1 / 2.4)[:, None, None]
    change = (scales[:, None] / scales[..., None] - 1).abs()  # [rows, t, b]
    bound = (roots[:, None] - change * norms) / (1 + change)
    assert (bound <= roots[..., None] + 1e-12).all()

    tries = []
    own = Roots.__call__
    monkeypatch.setattr(
        Roots,
        "__call__",
        lambda self, rows, scale: tries.append(len(rows)) or own(self, rows, scale),
    )
    values = weights("gaussian", 600, 64, 1)
    LpSearch(2.4, 80, 0.01)(values, grid)
    assert sum(tries) < 0.5 * 80 * len(values)


class Launches(TorchDispatchMode):
    """Counts operations, as a GPU is told to do them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ranges", [LpSearch(2.4, 3, 0.01), LpSearch2D(2.4, 3, 0.01)])
def test_on_a_gpu_a_search_takes_as_many_launches_for_more_groups(ranges, monkeypatch):
    """A layer of 4096 x 4096 in groups of 128 has 131,072 of them; meta tensors take the same."""
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: False)  # meta: where a walk ends
    counts = []
    for groups in (8, 4096 * 32):
        with Launches() as launches:
            ranges(torch.empty(groups, 128, device="meta"), Grid(4, False, PerGroup(128)))
        counts.append(launches.count)
    assert counts[0] == counts[1] > 3

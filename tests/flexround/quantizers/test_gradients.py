"""Each method's gradient against its formula, in float64, written out independently of the code."""

from __future__ import annotations

import pytest
import torch

from flexround.grid import Grid, PerChannel, PerTensor
from flexround.kernels.fake_quantize import fake_quantize
from flexround.kernels.soft_round import GAMMA, ZETA
from flexround.quantizers.adaquant import AdaQuant
from flexround.ranges import SCALE_FLOOR, LpSearch, MinMax
from tests.flexround.quantizers.methods import (
    ADAROUND,
    METHODS,
    granularities,
    layers,
    shaken,
    symmetries,
    weight_of,
)

BITS = 2  # a third of the codes lie on a bound


def at_bound(quantize) -> torch.Tensor:
    """Return d out / d value of quantize at values whose codes are -2, -1, 0, 1 and outside."""
    values = torch.tensor([[-9.0, -2.0, -1.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
    values.requires_grad_()
    quantize(values).sum().backward()
    return values.grad


def expected_at_bound() -> torch.Tensor:
    return torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)


def test_gradient_at_a_bound_is_one():
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    grid = Grid(BITS, True, PerTensor())
    assert torch.equal(at_bound(lambda v: fake_quantize(v, one, zero, grid)), expected_at_bound())


def test_that_test_fails_with_a_plain_clamp():
    """torch.clamp lost the gradient at its bounds in 2.14; a quantizer built on it learns less."""
    grad = at_bound(lambda v: torch.clamp(v + (v.round() - v).detach(), -2, 1))
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    assert torch.equal(grad, expected_at_bound()) == (version < (2, 14))


def flexround_case(make, symmetric, granularity):
    layer = weight_of(make, dtype=torch.float64)
    weight = layer.weight.detach()
    grid = Grid(BITS, symmetric, granularity)
    quantizer = METHODS["flexround"](weight, grid=grid, ranges=LpSearch(2.4, 80, 0.01))
    shaken(quantizer, 0.3)
    upstream = torch.randn(
        weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    (quantizer(weight) * upstream).sum().backward()
    return weight, grid, quantizer, upstream


@layers
@granularities
@symmetries
def test_flexround_gradients(make, granularity, symmetric):
    """Prop. 3.1 in the log domain: d W_hat / d log S2 = -(W / S') inside the range, and so on."""
    weight, grid, q, upstream = flexround_case(make, symmetric, granularity)
    divisor = torch.exp(q.log_s2 + q.log_s3 + (0 if q.log_s4 is None else q.log_s4)).detach()
    scaled = weight / divisor  # W / S', [out, in, *kernel]
    s1 = (q.scale * q.log_s1.exp()).detach()
    steps = granularity.group(scaled) / s1
    code = steps.round() + q.zero_point
    inside = (code >= grid.qmin) & (code <= grid.qmax)
    assert ((code == grid.qmin) | (code == grid.qmax)).any(), "the case must have codes on a bound"
    level = code.clamp(grid.qmin, grid.qmax) - q.zero_point

    by_log = -scaled * inside.reshape(weight.shape) * upstream
    by_s1 = ((s1 * level - s1 * steps * inside) * granularity.group(upstream)).sum(1, keepdim=True)
    other = tuple(range(1, weight.dim()))
    torch.testing.assert_close(q.log_s2.grad, by_log)
    torch.testing.assert_close(q.log_s3.grad, by_log.sum(other, keepdim=True))
    torch.testing.assert_close(q.log_s1.grad, by_s1)
    if weight.dim() > 2:
        keep_in = tuple(d for d in range(weight.dim()) if d != 1)
        torch.testing.assert_close(q.log_s4.grad, by_log.sum(keep_in, keepdim=True))
    else:
        assert q.log_s4 is None


def test_a_second_backward_pass_is_refused():
    """The first has written its gradient over what the forward pass kept."""
    weight = torch.randn(4, 4)
    q = METHODS["flexround"](weight, grid=Grid(BITS, True, PerTensor()), ranges=MinMax())
    out = q(weight).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_flexround_gradient_grows_with_the_weight():
    """Prop. 3.1: with the same upstream gradient, |d / d log S2| is proportional to |W|."""
    weight = torch.tensor([[0.1, 0.2, 0.3, -0.4]], dtype=torch.float64)
    q = METHODS["flexround"](weight, grid=Grid(8, True, PerTensor()), ranges=LpSearch(2.4, 1, 0.01))
    q(weight).sum().backward()
    torch.testing.assert_close(q.log_s2.grad, -weight)


@pytest.mark.parametrize("learn_s1", [True, False])
@pytest.mark.parametrize("use_s3", [True, False])
@pytest.mark.parametrize("use_s4", [True, False])
def test_flexround_ablations_remove_exactly_what_they_name(learn_s1, use_s3, use_s4):
    from flexround.quantizers.flexround import FlexRound

    weight = weight_of(lambda: torch.nn.Conv2d(8, 6, 3)).weight.detach()
    q = FlexRound(
        weight, grid=Grid(3, True, PerTensor()), ranges=LpSearch(2.4, 80, 0.01),
        learn_s1=learn_s1, use_s3=use_s3, use_s4=use_s4,
    )  # fmt: skip
    trained = {name: tuple(p.shape) for name, p in q.named_parameters() if p.requires_grad}
    expected = {"log_s2": (6, 8, 3, 3)}
    expected |= {"log_s1": (1, 1)} if learn_s1 else {}
    expected |= {"log_s3": (6, 1, 1, 1)} if use_s3 else {}
    expected |= {"log_s4": (1, 8, 1, 1)} if use_s4 else {}
    assert trained == expected
    assert len(q.param_groups(1e-3)[0]["params"]) == len(expected)


@layers
@granularities
@symmetries
def test_adaround_gradient(make, granularity, symmetric):
    """D W_hat / dV = s h'(V) where floor(W / s) + h(V) is inside the range, bounds included."""
    weight = weight_of(make, dtype=torch.float64).weight.detach()
    grid = Grid(BITS, symmetric, granularity)
    q = shaken(ADAROUND(weight, grid=grid, ranges=LpSearch(2.4, 80, 0.01)), 0.8)
    upstream = torch.randn(
        weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    (q(weight) * upstream).sum().backward()

    stretched = torch.sigmoid(q.v.detach()) * (ZETA - GAMMA) + GAMMA
    h = stretched.clamp(0, 1)
    slope = torch.sigmoid(q.v.detach()) * (1 - torch.sigmoid(q.v.detach())) * (ZETA - GAMMA)
    slope = slope * ((stretched >= 0) & (stretched <= 1))
    code = torch.floor(granularity.group(weight) / q.scale) + h + q.zero_point
    inside = (code >= grid.qmin) & (code <= grid.qmax)
    expected = q.scale * slope * inside * granularity.group(upstream)
    torch.testing.assert_close(q.v.grad, expected)


@pytest.mark.parametrize("progress", [0.2, 0.6, 1.0])
def test_adaround_penalty_and_its_gradient(progress):
    """Lambda sum(1 - |2 h - 1|^beta), beta from 20 to 2 over the last 80 % of the iterations."""
    weight = weight_of(lambda: torch.nn.Linear(24, 10), dtype=torch.float64).weight.detach()
    q = ADAROUND(weight, grid=Grid(4, True, PerTensor()), ranges=LpSearch(2.4, 80, 0.01))
    value = q.regularizer(progress)
    value.backward()

    v = q.v.detach().clone().requires_grad_()
    h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
    beta = 2 + 18 * (1 - (progress - 0.2) / 0.8)
    expected = 0.01 * (1 - (2 * h - 1).abs().pow(beta)).sum()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(q.v.grad, v.grad)


@pytest.mark.parametrize("name", ["beta_start", "beta_end"])
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0, -2.0])
def test_a_penalty_without_a_slope_midway_is_refused(name, beta):
    """|2 h - 1|^beta has none at h = 1/2, where a weight midway between two levels starts."""
    weight = torch.ones(2, 4)
    with pytest.raises(ValueError, match=rf"quant.{name}={beta}: give a number above 1"):
        ADAROUND(weight, grid=Grid(4, True, PerTensor()), ranges=MinMax(), **{name: beta})


def test_adaround_has_no_penalty_in_the_warm_up():
    weight = weight_of(lambda: torch.nn.Linear(24, 10)).weight.detach()
    q = ADAROUND(weight, grid=Grid(4, True, PerTensor()), ranges=LpSearch(2.4, 80, 0.01))
    assert q.regularizer(0.0) == 0
    assert q.regularizer(0.1999) == 0
    assert q.regularizer(0.2) > 0


def test_adaround_cosine_annealing():
    weight = weight_of(lambda: torch.nn.Linear(24, 10)).weight.detach()
    q = ADAROUND(
        weight, grid=Grid(4, True, PerTensor()), ranges=LpSearch(2.4, 80, 0.01), anneal="cosine"
    )
    assert [q.beta(0.2), q.beta(0.6), q.beta(1.0)] == pytest.approx([20, 11, 2])


@symmetries
def test_adaround_soft_weight_starts_at_full_precision_inside_the_range(symmetric):
    weight = weight_of(lambda: torch.nn.Linear(24, 10), dtype=torch.float64).weight.detach()
    grid = Grid(4, symmetric, PerTensor())
    q = ADAROUND(weight, grid=grid, ranges=LpSearch(2.4, 80, 0.01))
    code = weight / q.scale + q.zero_point
    inside = (code >= grid.qmin) & (code <= grid.qmax)
    torch.testing.assert_close(q(weight)[inside], weight[inside])


@granularities
@symmetries
def test_adaquant_gradients(granularity, symmetric):
    """D W_hat / dV = 1 inside; (2^b - 1) d / dR = d / d s1 = sum(level - step [inside]) (LSQ)."""
    weight = weight_of(lambda: torch.nn.Conv2d(8, 6, 3), dtype=torch.float64).weight.detach()
    grid = Grid(BITS, symmetric, granularity)
    q = shaken(METHODS["adaquant"](weight, grid=grid, ranges=LpSearch(2.4, 80, 0.01)), 0.02)
    upstream = torch.randn(
        weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    (q(weight) * upstream).sum().backward()
    steps = granularity.group(weight + q.v.detach()) / q.dequantization_scale().detach()
    s1, z = q.dequantization_scale().detach(), q.dequantization_zero_point().detach()
    # Clamped before it is rounded, as in the authors' code.
    inside = (steps + z >= grid.qmin) & (steps + z <= grid.qmax)
    assert (inside != ((steps.round() + z).clamp(grid.qmin, grid.qmax) == steps.round() + z)).any()
    level = (steps + z).clamp(grid.qmin, grid.qmax).round() - z
    rows = granularity.group(upstream)
    torch.testing.assert_close(q.v.grad, (rows * inside).reshape(weight.shape))
    for_s1 = ((level - steps * inside) * rows).sum(1, keepdim=True)
    if not symmetric:
        # z = -L / s1, its rounding passed through where z needed no clamp.
        low = (q.low + q.low_change).detach()
        free = (-low / s1).round() == z
        for_z = -(s1 * ~inside * rows).sum(1, keepdim=True) * free
        torch.testing.assert_close(q.low_change.grad, -for_z / s1)
        for_s1 = for_s1 + for_z * low / s1**2
    torch.testing.assert_close(q.range_change.grad, for_s1 / (2**BITS - 1))


@symmetries
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_adaquants_first_step_moves_the_range_by_its_rate(bits, symmetric):
    """Adam's first step is the rate, whatever the gradient: of R, and so of s1 a share of it."""
    weight = weight_of(lambda: torch.nn.Linear(24, 10), dtype=torch.float64).weight.detach()
    grid = Grid(bits, symmetric, PerChannel())
    q = AdaQuant(weight, grid=grid, ranges=MinMax(), lr_v=1e-5, lr_range=1e-3)
    groups = q.param_groups(123.0)  # the setting's rate, which is not used
    assert [group["lr"] for group in groups] == [1e-5, 1e-3]
    before = q.dequantization_scale().detach()
    (q(weight) - weight).square().sum().backward()
    sign = q.range_change.grad.sign()
    assert sign.any()
    torch.optim.Adam(groups).step()
    moved = q.dequantization_scale().detach() - before
    torch.testing.assert_close(moved * (2**bits - 1), -1e-3 * sign, rtol=1e-3, atol=1e-12)


def test_adaquants_range_stays_positive():
    weight = torch.full((2, 4), 0.5)
    q = AdaQuant(
        weight, grid=Grid(2, False, PerChannel()), ranges=MinMax(), lr_v=1e-5, lr_range=1e-3
    )
    q.range_change.data.fill_(-1.0)  # the range is 0.5
    assert torch.isfinite(q(weight)).all()
    torch.testing.assert_close(q.dequantization_scale(), torch.full((2, 1), SCALE_FLOOR))

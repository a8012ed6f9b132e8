"""SmoothQuant's equation, on the layers that it is folded into."""

from __future__ import annotations

import pytest
import torch

from flexround.calibration.calls import inputs_taken
from flexround.transforms.base import apply
from flexround.transforms.smoothquant import SmoothQuant
from tests.flexround.models.test_families import adapter_of, tokens
from tests.flexround.transforms.test_transforms import calibration, made_uneven


def maxima(adapter, layers, batch):
    """Return (max|X|, max|W|) of the inputs of layers, [in], that share one tensor."""
    modules = [adapter.model.get_submodule(name) for name in layers]
    taken = inputs_taken(modules, lambda: adapter.forward(batch))
    real = batch["attention_mask"].bool().flatten()
    weights = torch.cat([module.weight for module in modules])
    return taken[0][1].flatten(0, -2)[real].abs().amax(dim=0), weights.abs().amax(dim=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_maxima_are_those_of_equation_4(alpha):
    adapter, batch = made_uneven(adapter_of("llama")), tokens(padded=True)
    groups = [
        [f"model.layers.{i}.{n}" for n in names] for i in (0, 1) for names in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        )
    ]  # fmt: skip
    before = [maxima(adapter, group, batch) for group in groups]
    apply(SmoothQuant(alpha, "norms"), adapter, calibration(batch))
    for group, (inputs, weights) in zip(groups, before, strict=True):
        s = inputs**alpha / weights ** (1 - alpha)
        own = maxima(adapter, group, batch)
        torch.testing.assert_close(own[0], inputs / s, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own[1], weights * s, rtol=1e-4, atol=1e-5)


def test_at_one_half_activations_and_weights_are_equally_wide():
    """Eq. 4 at 1/2: both maxima are sqrt(max|X| max|W|)."""
    adapter, batch = adapter_of("opt"), tokens(padded=True)
    apply(SmoothQuant(0.5, "norms"), adapter, calibration(batch))
    inputs, weights = maxima(adapter, ["model.decoder.layers.1.fc1"], batch)
    torch.testing.assert_close(inputs, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [(-0.1, "norms"), (1.1, "norms"), (0.5, "some")])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"transform\."):
        SmoothQuant(*options)

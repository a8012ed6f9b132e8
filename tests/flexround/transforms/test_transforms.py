"""Every transform leaves the full-precision function of every family that it takes as it is."""

from __future__ import annotations

import pytest
import torch

from flexround.calibration.activation_cache import ActivationCache
from flexround.grid import Grid, PerGroup
from flexround.transforms.awq import AWQ
from flexround.transforms.base import HALF_TOLERANCE, Calibration, apply
from flexround.transforms.hadamard import Hadamard
from flexround.transforms.smoothquant import SmoothQuant
from tests.flexround.models.test_families import adapter_of, tokens

TRANSFORMS = {
    "smoothquant": SmoothQuant(0.5, "norms"),
    "smoothquant_all": SmoothQuant(0.5, "all"),
    "awq": AWQ(20, True, 10),
    "hadamard": Hadamard(True),
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "opt", "gpt2", "gpt_neo")
# float32 of a network with two layers: sums in another order, and a division and a product.
TOLERANCE = 2e-6


def made_uneven(adapter):
    """Give every norm and bias of adapter's network values of its own; they are born 1 and 0."""
    draws = torch.Generator().manual_seed(2)
    for name, parameter in adapter.model.named_parameters():
        if parameter.dim() == 1:
            noise = torch.rand(parameter.shape, generator=draws) + 0.5
            parameter.data += noise - (0.5 if name.endswith("weight") else 1.0)
    return adapter


def calibration(batch=None, seed=0):
    return Calibration(
        [tokens() if batch is None else batch], 2, Grid(3, False, PerGroup(16)),
        ActivationCache(), torch.Generator().manual_seed(seed),
    )  # fmt: skip


@torch.no_grad()
def logits(adapter, batch):
    found = adapter.forward(batch)
    real = batch.get("attention_mask")
    return found if real is None else found[real.bool()]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_logits_are_those_of_the_network_before(name, family, padded):
    adapter, batch = made_uneven(adapter_of(family)), tokens(padded=padded)
    before = logits(adapter, batch)
    state = {key: value.clone() for key, value in adapter.model.state_dict().items()}
    found = apply(TRANSFORMS[name], adapter, calibration(batch))
    error = (logits(adapter, batch) - before).norm() / before.norm()
    assert error <= TOLERANCE
    assert found["change_of_logits"] <= TOLERANCE
    # Every block has changed: a transform that does nothing is exact as well.
    changed = {k for k, v in adapter.model.state_dict().items() if not torch.equal(v, state[k])}
    for block in adapter.blocks():
        assert sum(key.startswith(block.name) for key in changed) >= 4


REFUSED = {
    "olmo2": "model.layers.0.self_attn.q_proj",  # norms are behind the layers
    "mixtral": "model.layers.0.mlp.experts.0.gate_up_proj",  # the router reads the norm as well
}


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_network_that_it_is_not_exact_on_is_refused_by_its_layer(name, family):
    adapter = adapter_of(family)
    state = {key: value.clone() for key, value in adapter.model.state_dict().items()}
    with pytest.raises(ValueError, match="layer " + REFUSED[family]):
        apply(TRANSFORMS[name], adapter, calibration())
    assert all(torch.equal(v, state[k]) for k, v in adapter.model.state_dict().items())


class Louder:
    """No exact change: the head's weights, and the logits with them, by a factor."""

    name = "louder"

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, adapter, calibration):
        """Change adapter's model and say nothing."""
        adapter.model.lm_head.weight.data *= self.factor
        return {}


def told(caplog):
    return [r.getMessage() for r in caplog.records if "transform=louder" in r.getMessage()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_rounding_is_told_of_and_more_is_refused(dtype, caplog):
    """A factor of 1 + 2^-n is exact in neither type for all weights, and nearly so for most."""
    apply(Louder(1 + 2**-6), adapter_of("llama", dtype), calibration())
    assert not told(caplog)
    apply(Louder(1 + 2**-5), adapter_of("llama", dtype), calibration())
    (line,) = told(caplog)
    assert "3.1e-02 of their norm: its weights are rounded to " in line
    assert line.endswith(f"{str(dtype).removeprefix('torch.')} once more")
    with pytest.raises(ValueError, match=r"\A[^\n]*6\.[23]e-02 of [^\n]*5e-02 is rounding[^\n]*\Z"):
        apply(Louder(1 + 2**-4), adapter_of("llama", dtype), calibration())


def test_in_float32_a_thousandth_is_refused_and_less_is_not_spoken_of(caplog):
    apply(Louder(1 + 2**-11), adapter_of("llama"), calibration())
    assert not told(caplog)
    with pytest.raises(ValueError, match=r"takes it; give transform=none\Z"):
        apply(Louder(1 + 2**-8), adapter_of("llama"), calibration())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["smoothquant_all", "hadamard"])
def test_a_network_in_bfloat16_is_transformed_within_its_rounding(name, family):
    adapter = made_uneven(adapter_of(family, torch.bfloat16))
    found = apply(TRANSFORMS[name], adapter, calibration())
    assert 1e-3 < found["change_of_logits"] < HALF_TOLERANCE / 1.5

"""Padding has no part in any number: what stands at places that do not count is of no meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flexround.activations.schemes import StaticPerTensor
from flexround.grid import Grid, PerChannel
from flexround.importance import ImportanceSearch
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from tests.flexround.models import test_families
from tests.flexround.models.test_language import CPU, EXAMPLE, halves, network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import SETTING
from tests.flexround.solvers.test_solvers import PLAIN
from tests.flexround.test_cost import Keep

STATIC = StaticPerTensor(8, False, 8, 8, None, 64, "quant")
SHORT = replace(SETTING, iters=3, batch_size=3)
GPTQ_START = replace(SHORT, start="gptq")
CASES = {
    "ranges": (replace(SHORT, iters=0), "rtn", STATIC, MinMax()),
    "ranges of full precision": (SHORT, "flexround", replace(STATIC, ranges_from="fp"), MinMax()),
    "a solver's": (Solve(3, sequential=True), PLAIN, STATIC, MinMax()),
    "imatrix": (replace(SHORT, iters=0), "rtn", None, ImportanceSearch()),
    "imatrix learned from": (SHORT, "signround", None, ImportanceSearch()),
    "a start in codes": (GPTQ_START, "flexround", None, MinMax()),
}  # fmt: skip


def found(family, case, pad, side="right"):
    """Return codes, scales and ranges of a network calibrated on samples with pad as padding."""
    loop, method, activation, ranges = CASES[case]
    batch = tokens(side)
    places = batch["attention_mask"] == 0
    batch["input_ids"] = batch["input_ids"].masked_fill(places, pad)
    if family == "llama":
        target = LanguageAdapter(network(family), EXAMPLE, CPU)
    else:
        target = LanguageAdapter(test_families.network(family), EXAMPLE, CPU, ["mlp.gate"])
    integers = loop(
        target, halves(batch), quantizer=METHODS.get(method, method), ranges=ranges,
        grid=Grid(3, True, PerChannel()), generator=torch.Generator().manual_seed(0),
        activation=activation,
    )  # fmt: skip
    numbers = [held for layer in integers.values() for held in (layer.codes, layer.scale)]
    sites = target.activations.quantizers() if activation else []
    return numbers + [held for site in sites for held in site.qparams().values()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_what_stands_at_padded_places_has_no_part(family, case):
    one, other = (found(family, case, pad) for pad in (3, 900))
    assert one
    for here, there in zip(one, other, strict=True):
        assert torch.equal(here, there)


def test_padding_in_front_has_no_part_either():
    one, other = (found("llama", "ranges", pad, "left") for pad in (3, 900))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_sample_of_padding_alone_has_no_part_in_an_error(batch_size):
    """The error is a mean over tokens, of which a batch of such samples has none."""
    batch, errors = tokens("right"), []
    batch["attention_mask"][3] = 0
    whole = batch["attention_mask"].any(1)
    for given in (batch, {name: values[whole] for name, values in batch.items()}):
        keep = Keep()
        replace(SETTING, iters=0, batch_size=batch_size)(
            LanguageAdapter(network("llama"), EXAMPLE, CPU), [given], quantizer=METHODS["rtn"],
            ranges=MinMax(), grid=Grid(3, True, PerChannel()),
            generator=torch.Generator().manual_seed(0), callbacks=[keep],
        )  # fmt: skip
        errors.append([report.error_after for report in keep.reports])
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)

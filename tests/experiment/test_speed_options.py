"""What makes an iteration faster must not change what it finds, beyond float tolerance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.kernels.chunking import check_compiler, compiling
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.precision import check_precision, products
from flexround.utils.threads import computing_on
from tests.conftest import some_slow
from tests.flexround.quantizers.methods import LAYERS, METHODS, shaken, weight_of
from tests.flexround.quantizers.test_reference import RANGES, passes
from tests.flexround.reconstruction.test_reconstruction import SETTING, quantize

CPU = torch.device("cpu")
LEARNED = [name for name in METHODS if name != "rtn"]


def reports_of(setting, method):
    """Return what became of each unit."""
    reports = ReportLog()
    quantize(setting, method, callbacks=[reports])
    return reports.blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_compiled_passes_are_the_same(name):
    """Over shapes, granularities and symmetry, so that one kernel serves them all."""
    for granularity in (PerTensor(), PerChannel(), PerGroup(6)):
        for symmetric in (True, False):
            for layer in ("linear",) if name == "lrq" else LAYERS:
                weight = weight_of(LAYERS[layer], dtype=torch.float64).weight.detach()
                grid = Grid(2, symmetric, granularity)
                quantizer = shaken(METHODS[name](weight, grid=grid, ranges=RANGES), 0.2)
                plain, slopes = passes(lambda: quantizer(weight), quantizer)  # noqa: B023
                with compiling(True):
                    fast, fast_slopes = passes(lambda: quantizer(weight), quantizer)  # noqa: B023
                torch.testing.assert_close(fast, plain)
                torch.testing.assert_close(fast_slopes, slopes)


@pytest.mark.parametrize("name", ["flexround", "adaround"])
def test_the_number_of_threads_does_not_change_the_errors(name):
    errors = []
    for threads in (1, 2):
        with computing_on(threads):
            blocks = reports_of(replace(SETTING, iters=20), name)
        errors.append([block.error_after for block in blocks])
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_bfloat16_products_are_bfloat16_and_learn_as_well():
    layer = nn.Linear(4, 4)
    with products("bfloat16", CPU):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    assert layer(torch.ones(1, 4)).dtype == torch.float32
    full, half = (
        reports_of(replace(SETTING, precision=precision), "flexround")
        for precision in ("float32", "bfloat16")
    )
    for exact, fast in list(zip(full, half, strict=True))[1:-1]:  # first and last have 8 bits
        assert fast.error_after != exact.error_after, "bfloat16 must have been used"
        assert fast.error_after < fast.error_before
        assert fast.error_after == pytest.approx(exact.error_after, rel=0.3)


def test_what_a_device_lacks_is_refused():
    with pytest.raises(ValueError, match=r"recon.precision=tf32 .* give bfloat16 or float32"):
        check_precision("tf32", CPU)
    with pytest.raises(
        ValueError, match=r"recon\.precision=int8: give float32, tf32, bfloat16, auto"
    ):
        check_precision("int8", CPU)


def test_no_compiler_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"compile=true needs a C\+\+ compiler, and no-such"):
        check_compiler(CPU)


@pytest.mark.parametrize("dtype", some_slow(["bfloat16", "float16"], ["float16"]))
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
def test_streams_in_half_precision_are_no_other_architecture(cli, model, dtype):
    pytest.importorskip("transformers", reason="the extra language is not installed")
    short = ("recon.iters=1", "num_samples=8", "recon.batch_size=4")
    outcome = cli(f"model={model}", "quant=flexround", *short, f"stream_dtype={dtype}")
    assert outcome.status == 0, outcome.err

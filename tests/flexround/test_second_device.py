"""Everything on a second device: a tensor that is left on the CPU fails here, GPU or not.

The device is tests/stand_in.py's. Every file of conf/quant, conf/activation, conf/recon and
conf/ranges runs on a network of convolutions and on one of tokens, and every family of language
models once.
"""

from __future__ import annotations

import functools
import os
from functools import partial
from pathlib import Path

import pytest

if "STAND_IN" not in os.environ:
    pytest.skip("tests/test_second_device.py runs it", allow_module_level=True)

import torch
from torch import nn

from experiment import ROOT
from experiment.build import build
from experiment.composer import Composer
from flexround import quantize
from flexround.api.presets import presets
from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.arguments import PerSample
from flexround.calibration.calls import RecordedCalls
from flexround.grid import Grid
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.vision import VisionAdapter
from flexround.reconstruction import block_walk, learning, optimize, room
from flexround.reconstruction.checkpoints import FileCheckpoints
from flexround.transforms.hadamard_matrices import keeping_mean, random_hadamard
from tasks.language.tiny_families import FAMILIES, config_of
from tests import stand_in
from tests.conftest import some_slow
from tests.flexround.reconstruction.test_reconstruction import BasicBlock

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

CPU = torch.device("cpu")
TOKENS = {"input_ids": torch.arange(8).view(2, 4)}
MIXTURES = ("mixtral", "qwen3_moe", "olmoe")
SHORT = {"recon.iters": 3, "recon.act_iters": 3, "recon.batch_size": 2, "quant.rank": 3}


def members(group):
    return sorted(path.stem for path in Path(ROOT, "conf", group).glob("*.yaml"))


def learns(quant):
    """Return whether a method learns: a solver has no blocks to learn, and rtn no use for them."""
    block = presets()["methods"][quant]["loops"].get("block")
    return block is not None and "recon" not in block["idle"]["quant"]


@pytest.fixture
def device(monkeypatch):
    with (  # the CPU has a kernel for attention that other devices lack: both take the plain one
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        stand_in.used(monkeypatch) as made,
    ):
        yield made


def convolutions(device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU6(), BasicBlock(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip
        adapter = VisionAdapter(net, torch.randn(2, 3, 8, 8), 8, device)
        return adapter, [torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)]


def _small(family):
    config = config_of(family)
    config.vocab_size, config.pad_token_id = 128, None
    return config


def language(device, family="llama", padded=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = transformers.AutoModelForCausalLM
        if family == "bert":
            auto = transformers.AutoModelForSequenceClassification
        network = auto.from_config(_small(family)).eval()
        batches = [{"input_ids": torch.randint(5, 120, (3, 20))} for _ in range(2)]
    if padded:
        for batch in batches:
            mask = torch.ones(3, 20, dtype=torch.long)
            mask[1, 15:] = 0
            batch["attention_mask"] = mask
    router = ["mlp.gate"] if family in MIXTURES else []
    return LanguageAdapter(network, TOKENS, device, router), batches


composer = functools.cache(Composer)  # reads conf/ once


@functools.cache
def configuration(*overrides):
    cfg, _ = composer().composed(overrides)
    for name, value in SHORT.items():
        group, _, key = name.partition(".")
        if key in cfg[group] and cfg[group][key]:
            cfg[group][key] = value
    return cfg


def quantized(adapter, batches, *overrides, where="auto", checkpoints=None):
    """Return (integers by layer, the network's outputs) of a run with overrides."""
    cfg = configuration(*overrides)
    grid = Grid(cfg.bits, cfg.symmetric, build(cfg.granularity))
    integers = build(cfg.recon)(
        adapter, batches, quantizer=build(cfg.quant), grid=grid, ranges=build(cfg.ranges),
        generator=torch.Generator().manual_seed(0), activation=build(cfg.activation),
        cache=ActivationCache(where=where), checkpoints=checkpoints,
    )  # fmt: skip
    with torch.no_grad():
        return integers, [adapter.forward(batch) for batch in batches]


def check_same(made, device, *overrides):
    """Look that a run on device gives the CPU's integers and outputs.

    Integers of finished blocks lie where the blocks do: the device has room for those at work.
    """
    expected, outputs = quantized(*made(CPU), *overrides)
    adapter, batches = made(device)
    found, own = quantized(adapter, batches, *overrides)
    assert found.keys() == expected.keys()
    for name, integers in found.items():
        held = {integers.codes.device, integers.scale.device, integers.zero_point.device}
        assert held == {adapter.storage_device}
        moved = (integers.codes.cpu() != expected[name].codes).float().mean()
        assert moved <= 2e-3, f"{name}: {moved:.1%} of the codes are others"
    for output, wanted in zip(own, outputs, strict=True):
        assert output.device.type == device.type
        assert (output.cpu() - wanted).norm() <= 1e-2 * wanted.norm()


LANGUAGE = ("model=tiny_llama", "granularity=per_group", "group_size=16", "ranges=min_max")


# Methods whose parts stand in others as well.
COMPOSED = ("adaquant_flexround", "flexround_fixed_s1", "flexround_no_s3_s4", "flexround_lwc")


@pytest.mark.parametrize("quant", some_slow(members("quant"), COMPOSED))
def test_methods(device, quant):
    if quant != "lrq":
        check_same(convolutions, device, f"quant={quant}", "ranges=min_max")
    if quant != "cdquant":  # whose many small steps take a stand-in long
        check_same(partial(language, padded=True), device, f"quant={quant}", *LANGUAGE)


@pytest.mark.parametrize("recon", some_slow(["block", "brecq", "qdrop", "layer"], ["block"]))
@pytest.mark.parametrize("activation", members("activation"))
def test_activations_in_every_setting(device, activation, recon):
    own = (f"recon={recon}", f"activation={activation}")
    if activation == "static_per_tensor":
        check_same(convolutions, device, *own, "ranges=min_max")
        check_same(language, device, *own, *LANGUAGE)
    elif recon in ("block", "layer"):
        kv = ["kv_bits=8"] if activation == "dynamic_per_token" else []
        check_same(language, device, *own, *kv, *LANGUAGE)


def test_ranges_go_along_with_a_network_that_is_moved(device):
    own = ("activation=static_per_tensor", "quant=rtn", "ranges=min_max")
    adapter, batches = convolutions(device)
    (expected, _) = quantized(adapter, batches, *own)[1]
    adapter.model.to(CPU)
    with torch.no_grad():
        found = adapter.model(batches[0])
    assert found.device == CPU
    torch.testing.assert_close(found, expected.cpu(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("where", ["the network", "samples", "both"])
def test_a_network_and_its_samples_may_lie_on_the_device(device, where):
    """As `flexround.quantize(network.cuda(), tokens, ...)` has them."""

    def made(on):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = transformers.AutoModelForCausalLM.from_config(_small("llama")).eval()
            ids = torch.randint(5, 120, (4, 20))
        return network.to(on[0]), [{"input_ids": ids.to(on[1])}]

    def codes(*on):
        network, batches = made(on)
        options = {"recon.iters": 2, "recon.batch_size": 2, "recon.last_loss": "next_token"}
        found = quantize(network, batches, device=device, options=options | {"ranges": "min_max"})
        return {name: layer.codes.cpu() for name, layer in found.layers.items()}

    own = [device if where in (name, "both") else CPU for name in ("the network", "samples")]
    found, expected = codes(*own), codes(CPU, CPU)
    for name, wanted in expected.items():
        assert (found[name] != wanted).float().mean() <= 2e-3


def test_scales_end_to_end(device):
    made = partial(language, padded=True)
    check_same(made, device, "recon.e2e_iters=2", "recon.e2e_lr=1e-4", *LANGUAGE)


@pytest.mark.parametrize("recon", ["qdrop", "brecq"])
def test_ranges_of_a_run_that_goes_on_lie_where_they_did(device, recon, tmp_path):
    own = (f"recon={recon}", "activation=static_per_tensor", "ranges=min_max")
    places = []
    for _ in range(2):  # the second finds all units of the first
        adapter, batches = convolutions(device)
        quantized(adapter, batches, *own, checkpoints=FileCheckpoints(tmp_path, {}))
        held = [q.qparams() for q in adapter.activations.quantizers()]
        places.append([values[name].device for values in held for name in ("scale", "zero_point")])
    assert places[0] == places[1] == [device] * len(places[0])


def test_a_rotation_that_keeps_the_mean(device):
    """By itself: a stand-in's tensors can't be followed through a network, as transforms do."""
    rotation = random_hadamard(12, torch.Generator().manual_seed(0))
    found = keeping_mean(rotation.to(device)).cpu()
    torch.testing.assert_close(found, keeping_mean(rotation))


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_an_activation_function_with_weights_of_its_own(device, where):
    def made(on):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 4)
            )
            batches = [torch.randn(3, 3, 8, 8)]
            return VisionAdapter(net, torch.randn(2, 3, 8, 8), None, on), batches

    expected, _ = quantized(*made(CPU))
    found, _ = quantized(*made(device), where=where)
    for name, integers in found.items():
        assert torch.equal(integers.codes.cpu(), expected[name].codes)


@pytest.mark.parametrize("ranges", members("ranges"))
def test_ranges(device, ranges):
    own = (f"ranges={ranges}", "activation=static_per_tensor", "quant=rtn", "symmetric=false")
    if ranges == "imatrix":  # of symmetric weights, by what a linear layer's inputs weigh
        check_same(language, device, "quant=signround_v2")
        return
    check_same(convolutions, device, *own)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_families(device, family):
    padded = family in ("bert", "mixtral")
    quant = "quant=gptq" if family == "mixtral" else "quant=rtn"
    check_same(partial(language, family=family, padded=padded), device, quant, *LANGUAGE)


# What reads the streams: both, those inside of a block, the second pass, and the solvers.
STREAMS = {
    "quantized": ("quant=flexround",),
    "mixed": ("recon=qdrop", "activation=static_per_tensor"),
    "layer": ("recon=layer",),
    "brecq": ("recon=brecq", "activation=static_per_tensor"),
    "solver": ("quant=gptq",),
}


@pytest.fixture
def homes(monkeypatch):
    """Return where the streams of blocks and units at work and their targets lie."""
    seen = set()
    plain, learn = block_walk._advance, learning.learn

    def learned(job, unit, quantizers, activations, streams, targets):
        seen.update(tensor.device.type for tensor in (targets, *(s.inputs for s in streams)))
        return learn(job, unit, quantizers, activations, streams, targets)

    def watched(walk, streams, index, work, ahead):
        held = [work.plain, work.quantized, *([] if ahead is None else [ahead])]
        leaves = [leaf for calls in held for leaf in (*calls.args, *calls.kwargs.values())]
        own = [leaf.values for leaf in leaves if isinstance(leaf, PerSample)]
        passed = [] if work.passed is None else [work.passed]
        tensors = [*own, *passed, *(calls.inputs for calls in held)]
        seen.update(tensor.device.type for tensor in tensors)
        plain(walk, streams, index, work, ahead)

    monkeypatch.setattr(block_walk, "_advance", watched)
    monkeypatch.setattr(learning, "learn", learned)
    return seen


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("kind", ["convolutions", "tokens"])
def test_where_the_streams_lie_changes_no_bit(device, kind, case, homes):
    options = ["ranges=min_max"] if kind == "convolutions" else LANGUAGE
    found = []
    for where, lies_on in (("cpu", "cpu"), ("cuda", device.type)):
        made = convolutions(device) if kind == "convolutions" else language(device, padded=True)
        homes.clear()
        found.append(quantized(*made, *STREAMS[case], *options, where=where))
        assert homes == {lies_on}
    (one, outputs), (other, others) = found
    for name, integers in one.items():
        assert torch.equal(integers.codes.cpu(), other[name].codes.cpu())
        assert torch.equal(integers.scale.cpu(), other[name].scale.cpu())
    for output, wanted in zip(outputs, others, strict=True):
        assert torch.equal(output.cpu(), wanted.cpu())


def test_streams_lie_on_a_gpu_where_they_fit_and_are_refused_there_where_not(
    device, homes, monkeypatch
):
    """Two layers of hidden size 16: six samples of 20 tokens; weights at work come beside them."""
    adapter, _ = language(device)
    hidden = adapter.model.config.hidden_size
    streams = 5 * 6 * 20 * hidden * 4
    work = max(
        sum(16 * layer.module.weight.numel() for layer in b.layers) for b in adapter.blocks()
    )
    for free, lies_on in ((2 * (streams + work), device.type), (2 * (streams + work) - 1, "cpu")):
        monkeypatch.setattr(room, "free_on", lambda _, free=free: free)
        homes.clear()
        quantized(*language(device), "quant=rtn", *LANGUAGE)
        assert homes == {lies_on}
    monkeypatch.setattr(room, "free_on", lambda _: streams + work - 1)
    with pytest.raises(
        ValueError, match=r"stream_device=cuda: the activations of 6 .*give stream_"
    ):
        quantized(*language(device), "quant=rtn", *LANGUAGE, where="cuda")
    monkeypatch.setattr(room, "free_on", lambda _: streams + work)
    quantized(*language(device), "quant=rtn", *LANGUAGE, where="cuda")


SETTINGS = {
    "plain": (),
    "keep_best": ("recon.keep_best=true",),
    "layer": ("recon=layer",),
    "qdrop": ("recon=qdrop", "activation=static_per_tensor"),
    "brecq": ("recon=brecq", "activation=static_per_tensor"),
    "per_token": ("activation=dynamic_per_token", "kv_bits=8"),
}


def waited(monkeypatch, made, *overrides, where="auto"):
    """Return where the iterations of a run wait for the device, besides for the losses' curve."""
    monkeypatch.setattr(optimize.UnitOptimizer, "_read", lambda *_: 0.0)
    with stand_in.counting("run") as waits:
        quantized(*made, *overrides, where=where)
    return waits


@pytest.mark.parametrize("setting", some_slow(SETTINGS, ("layer", "brecq", "per_token")))
def test_an_iteration_waits_for_nothing(device, setting, monkeypatch):
    made = language(device, padded=True)
    assert not waited(monkeypatch, made, *SETTINGS[setting], *LANGUAGE)
    made = language(device, padded=True)
    assert not waited(monkeypatch, made, *SETTINGS[setting], *LANGUAGE, where="cuda")
    if setting != "per_token":
        made = convolutions(device)
        assert not waited(monkeypatch, made, *SETTINGS[setting], "ranges=min_max", where="cpu")
        assert not waited(monkeypatch, convolutions(device), *SETTINGS[setting], "ranges=min_max")


def test_a_start_in_gptqs_codes(device):
    for made in (partial(language, padded=True), convolutions):
        check_same(made, device, "recon.start=gptq", "ranges=min_max")


@pytest.mark.parametrize("quant", [name for name in members("quant") if learns(name)])
def test_no_method_waits(device, quant, monkeypatch):
    assert not waited(monkeypatch, language(device), f"quant={quant}", *LANGUAGE)


def test_of_a_mixture_the_tokens_of_each_expert_are_waited_for(device, monkeypatch):
    waits = waited(monkeypatch, language(device, "mixtral"), *LANGUAGE)
    assert {place.partition(":")[0] for place in waits} == {"flexround/models/experts.py"}


def test_what_is_waited_for_is_seen(device):
    """The count itself: .item(), a branch, a copy home, the CPU's indices, a mask."""
    x = torch.arange(6.0).to(device)

    def operations():
        yield lambda: x.sum().item()
        yield lambda: bool((x > 0).all())
        yield lambda: x.cpu()
        yield lambda: x[torch.tensor([0, 1])]
        yield lambda: x[x > 2]
        yield lambda: torch.ones(6).to(device)

    for operation in operations():
        with stand_in.counting("replay") as waits:
            module = partial(lambda run, _: (run(), x)[1], operation)
            RecordedCalls(x).replay(module, torch.zeros(1), device, x)
        assert sum(waits.values()) == 1


def test_a_tensor_left_behind_is_refused(device):
    x = torch.arange(6.0).to(device)
    draws, own = torch.Generator(), torch.Generator(device)
    for operation in (
        lambda: x + torch.ones(6),
        lambda: torch.ones(6).add_(x),
        lambda: torch.ones(6)[x.long()],
        lambda: x.view(2, 3) @ torch.ones(3, 1),
        lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda: torch.where(x > 2, x, torch.ones(6)),
        lambda: x.clone().random_(generator=draws),
        lambda: torch.ones(6).random_(generator=own),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            operation()
    assert torch.equal((x * torch.tensor(2.0)).cpu(), torch.arange(6.0) * 2), "a scalar may stay"

"""First ranges of activations: the sample they are searched on, and whose activations they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from experiment.config import composed
from flexround.activations.hooks import Activations
from flexround.activations.quantizers import SAMPLED, TensorQuantizer
from flexround.activations.sampling import condense, sample
from flexround.activations.schemes import StaticPerTensor
from flexround.grid import Grid, PerTensor
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import LpSearch, MinMax
from flexround.reconstruction.activation_ranges import first_samples
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.layerwise import Solve
from tests.conftest import TINY
from tests.flexround.activations.test_activations import BRECQ, QDROP, STATIC, draws
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import (
    CPU,
    RANGES,
    SETTING,
    adapter,
    calibration,
)
from tests.flexround.solvers.test_solvers import PLAIN

GRID = Grid(3, True, PerTensor())


def range_of(x, bits=4, symmetric=True, ranges=RANGES, seed=0, warm=0):
    """Return (scale, zero_point) that a quantizer starts with on x."""
    generator = draws(seed)
    torch.rand(warm, generator=generator)
    quantizer = TensorQuantizer("a", bits, symmetric, ranges)
    quantizer(x, 1.0, generator)
    return quantizer.scale.item(), quantizer.zero_point.item()


@pytest.fixture(scope="module")
def uneven():
    """1024 tokens of 4096 channels, 8 of which are 30 times as large; none at a multiple of 16."""
    scales = torch.ones(4096)
    scales[7::512] = 30
    return torch.randn(1024, 4096, generator=draws()) * scales


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, False)])
def test_a_range_is_nearly_that_of_the_full_search(uneven, bits, symmetric):
    assert uneven.numel() > SAMPLED, "it has to be sampled"
    grid = Grid(bits, symmetric, PerTensor())
    full = RANGES(uneven.reshape(1, -1), grid)[0].item()
    for seed in range(3):
        scale, _ = range_of(uneven, bits, symmetric, seed=seed)
        assert scale == pytest.approx(full, rel=0.06)
    # Every 16th element, a divisor of 4096, and the ends as one more each.
    strided = torch.cat([uneven.flatten()[::16], torch.stack(uneven.aminmax())])
    wrong = RANGES(strided[None], grid)[0].item()
    assert abs(wrong / full - 1) > 0.15, "the fault that this guards against"


def test_the_ends_of_min_max_are_exact(uneven):
    scale, zero_point = range_of(uneven, 8, False, MinMax())
    low, high = uneven.min().item(), uneven.max().item()
    assert scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert zero_point == round(-low / scale)


def test_the_sample_is_the_seeds_alone(uneven):
    first = range_of(uneven)
    torch.manual_seed(99)
    torch.rand(7)
    assert range_of(uneven, warm=1000) == first, "whatever was drawn before"
    places = [sample(torch.arange(10**6), 1000, draws(seed)) for seed in (0, 1)]
    assert not torch.equal(*places), "another seed, another sample"


def test_the_sample_has_one_element_of_each_stretch():
    values = torch.arange(10_000).view(50, 200)
    for count in (100, 128, 9_999):
        places = sample(values, count, draws())
        stretch = torch.arange(count) * 10_000 / count
        assert (places >= stretch.floor()).all()
        assert (places <= (stretch + 10_000 / count).ceil()).all()
    assert torch.equal(sample(values, 10_000, draws()), values.flatten())
    # A stride of 8 would see 25 of the 200 channels.
    assert len((sample(values, 1250, draws()) % 200).unique()) > 195


def test_values_that_stand_for_all_are_means_of_sorted_neighbours():
    values = torch.randn(4096, generator=draws())
    wanted = values.sort().values.view(512, 8).mean(dim=1)
    torch.testing.assert_close(condense(values, 512), wanted)
    assert torch.equal(condense(values, 4096), values)
    uneven = condense(values, 1000)
    assert (len(uneven), uneven.diff().min() >= 0) == (1000, True)
    assert uneven.mean() == pytest.approx(values.mean().item(), abs=5e-3)
    assert torch.equal(condense(torch.full((999,), 3.0), 7), torch.full((7,), 3.0))


def run(setting, ranges_from, method="rtn", ranges=None, bits=3, init=32, act_bits=4):
    """Return the adapter of a quantized network, and the reports of its units."""
    target, log = adapter(), ReportLog()
    setting(
        target, calibration(32), quantizer=PLAIN if method == "gptq" else METHODS[method],
        grid=replace(GRID, bits=bits), ranges=ranges or MinMax(), generator=draws(),
        activation=replace(STATIC, bits=act_bits, ranges_from=ranges_from, init_samples=init),
        callbacks=[log],
    )  # fmt: skip
    return target, {report.name: report for report in log.blocks}


def seen_by_sites(target, images):
    """Return what reaches each quantizer of target on images, by name."""
    found = {}

    def see(quantizer, args):
        found.setdefault(quantizer.name, args[0])

    for quantizer in target.activations.quantizers():
        quantizer.register_forward_pre_hook(see)
    with torch.no_grad():
        target.forward(images)
    return found


def full_precision_activations(images):
    """Return what a full-precision network's sites see, by name."""
    target, found = adapter(), {}
    activations = Activations(target.blocks(), STATIC, MinMax(), draws())
    for quantizer in activations.quantizers():
        quantizer.forward = lambda x, *_, name=quantizer.name: found.setdefault(name, x)
    with activations.on(), torch.no_grad():
        target.forward(images)
    return found


def min_max_scale(x, bits):
    """Return the step of a grid that just covers x: unsigned codes where it is never negative."""
    return (x.max() if x.min() >= 0 else 2 * x.abs().max()).item() / (2**bits - 1)


SOLVE = Solve(batch_size=8, sequential=True)


@pytest.mark.parametrize(
    ("setting", "method"),
    [(SETTING, "rtn"), (BRECQ, "rtn"), (QDROP, "rtn"), (SOLVE, "gptq")],
    ids=["block", "brecq", "qdrop", "solve"],
)
@pytest.mark.parametrize("init", [32, 12])
def test_ranges_of_the_full_precision_network(setting, method, init):
    """QDrop: calibrated before anything is quantized; here in batches of 8, 12 is no multiple."""
    target, _ = run(setting, "fp", method, init=init)
    truth = full_precision_activations(calibration(32)[0][:init])
    sites = target.activations.quantizers()
    assert [site.name for site in sites] == list(truth)
    for site in sites:
        wanted = min_max_scale(truth[site.name], site.bits)
        assert site.scale.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "method"),
    [(SETTING, "rtn"), (BRECQ, "rtn"), (QDROP, "rtn"), (SOLVE, "gptq")],
    ids=["block", "brecq", "qdrop", "solve"],
)
def test_ranges_of_the_quantized_network(setting, method):
    """BRECQ: one pass of the network with weights quantized, each range set as it is met."""
    target, _ = run(setting, "quant", method, init=12)
    truth = full_precision_activations(calibration(32)[0][:12])
    seen = seen_by_sites(target, calibration(32)[0][:12])
    moved = 0
    for site in target.activations.quantizers():
        wanted = min_max_scale(seen[site.name], site.bits)
        assert site.scale.item() == pytest.approx(wanted, rel=1e-5)
        moved += abs(wanted / min_max_scale(truth[site.name], site.bits) - 1) > 0.01
    assert moved >= 2, "the two networks can be told apart"


def test_brecq_sets_all_ranges_before_it_learns_one():
    frozen = replace(BRECQ, iters=0, act_lr=1e-12, act_inputs="fp")
    learning = replace(frozen, act_lr=1e-2, act_iters=20)
    still, _ = run(frozen, "quant", "flexround")
    reports = run(learning, "quant", "flexround")[1]
    plain, _ = run(SETTING, "quant", "rtn")
    for site, other in zip(
        still.activations.quantizers(), plain.activations.quantizers(), strict=True
    ):
        assert site.scale.item() == pytest.approx(other.scale.item(), rel=1e-5)
    # What each block starts with does not know what those in front of it have learned.
    held = run(frozen, "quant", "flexround")[1]
    names = [name for name in held if name.endswith("activations")]
    assert len(names) == 3
    for name in names:
        assert reports[name].error_before == pytest.approx(held[name].error_before, rel=1e-6)
        assert reports[name].error_after != reports[name].error_before


@pytest.mark.parametrize("inputs", ["fp", "quant"])
def test_the_second_pass_feeds_the_stream_it_says(inputs):
    """By hand: |block(W_hat, x with its activations quantized) - block(W, x)|^2 on either x."""
    setting = replace(BRECQ, iters=0, act_iters=1, act_lr=1e-12, act_inputs=inputs)
    target, reports = run(setting, "quant", "flexround")
    plain, images = adapter(), calibration(32)[0]
    block, source = target.model[3], plain.model[3]
    with torch.no_grad():
        x = plain.model[:3](images)
        wanted = source(x)
        fed = x if inputs == "fp" else target.model[:3](images)
        error = (block(fed) - wanted).square().sum(dim=1).mean().item()
    assert reports["3 activations"].error_before == pytest.approx(error, rel=1e-4)


def test_the_first_samples_of_batches():
    target, images = adapter(), calibration(10)[0]
    parts = [images[:4], images[4:8], images[8:]]
    for count in (1, 4, 6, 10, 99):
        found = torch.cat(first_samples(target, parts, count))
        assert torch.equal(found, images[:count])
    texts = LanguageAdapterLike()
    batch = {"input_ids": torch.arange(12).view(6, 2), "attention_mask": torch.ones(6, 2)}
    (found,) = first_samples(texts, [batch, batch], 5)
    assert {name: len(values) for name, values in found.items()} == {
        "input_ids": 5, "attention_mask": 5,
    }  # fmt: skip


class LanguageAdapterLike:
    """Counts the samples of a batch as LanguageAdapter does."""

    num_samples = LanguageAdapter.num_samples


def preset(*overrides):
    """Return the activation and the reconstruction of a composed configuration."""
    cfg = composed(["activation=static_per_tensor", *overrides])
    return cfg.activation, cfg.recon


# QDrop/qdrop/solver/main_imagenet.py: enable_calibration_woquantization on act_fake_quant, then
# model(cali_data[:256]). BRECQ/main_imagenet.py: set_quant_state(True, True), qnn(cali_data[:64]);
# the second pass's kwargs have no asym, so that data_utils.py feeds what the network in full
# precision gives.
@pytest.mark.parametrize(
    ("recon", "samples", "network", "inputs"),
    [("qdrop", 256, "fp", None), ("brecq", 64, "quant", "fp"), ("block", 64, "quant", None)],
)
def test_presets_start_as_their_code_does(recon, samples, network, inputs):
    activation, found = preset(f"recon={recon}")
    assert (activation.init_samples, activation.ranges_from) == (samples, network)
    assert inputs is None or found.act_inputs == inputs


def test_the_command_line_wins_over_a_preset():
    activation, found = preset(
        "recon=brecq", "act_init_samples=9", "act_ranges_from=fp", "recon.act_inputs=quant"
    )
    assert (activation.init_samples, activation.ranges_from) == (9, "fp")
    assert found.act_inputs == "quant"


@pytest.mark.parametrize(
    ("args", "message"),
    [(["recon=qdrop", "activation=static_per_tensor", "recon.act_inputs=fp"],
      "recon.act_inputs=fp does nothing with the chosen recon"),
     (["act_ranges_from=fp"], "act_ranges_from=fp does nothing with the chosen activation"),
     (["act_init_samples=9", "activation=dynamic_per_token"], "act_init_samples=9 does nothing"),
     (["activation=static_per_tensor", "act_ranges_from=both"], "activation.ranges_from=both"),
     (["activation=static_per_tensor", "recon=brecq", "recon.act_inputs=mixed"],
      "recon.act_inputs=mixed")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, args, message):
    outcome = cli(*TINY, *args)
    assert outcome.status == 1
    assert message in outcome.err.splitlines()[-1]


def test_bad_values_are_refused_by_the_library():
    with pytest.raises(ValueError, match=r"ranges_from=teacher: give one of fp, quant"):
        replace(STATIC, ranges_from="teacher")
    with pytest.raises(ValueError, match=r"recon.act_inputs=mixed: give one of quant, fp"):
        replace(BRECQ, act_inputs="mixed")


class Attention(nn.Module):
    """Takes words and distances through one projection, distances scaled down."""

    def __init__(self, times):
        super().__init__()
        self.proj, self.out, self.times = nn.Linear(8, 8), nn.Linear(8, 8), times

    def forward(self, hidden_states):
        """Return the words' projection with the distances' added, times - 1 times."""
        words = self.proj(hidden_states)
        for _ in range(hidden_states.shape[1] if self.times is None else self.times - 1):
            words = words + self.proj(hidden_states / 100)
        return self.out(words)


class Net(nn.Module):
    """Two layers that call one of their own layers several times."""

    def __init__(self, times):
        super().__init__()
        from transformers import PretrainedConfig

        self.config = PretrainedConfig()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)
        self.layers = nn.ModuleList([Attention(times), Attention(times)])

    def forward(self, input_ids):
        """Return logits."""
        from transformers.modeling_outputs import CausalLMOutput

        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return CausalLMOutput(logits=self.head(x))


def repeated(times, setting=SETTING, length=6, method="rtn"):
    torch.manual_seed(0)
    target = LanguageAdapter(Net(times), {"input_ids": torch.arange(8).view(2, 4)}, CPU)
    ids = torch.randint(0, 50, (8, length), generator=draws())
    setting(
        target, [{"input_ids": ids}], quantizer=METHODS[method], grid=Grid(8, False, PerTensor()),
        ranges=MinMax(), generator=draws(),
        activation=StaticPerTensor(8, False, 8, 8, None, 8, "fp"),
    )  # fmt: skip
    return target


@pytest.mark.parametrize("setting", [SETTING, BRECQ, QDROP], ids=["block", "brecq", "qdrop"])
def test_a_layer_called_twice_has_a_range_for_each_call(setting):
    target = repeated(2, replace(setting, iters=2, act_iters=2, act_lr=1e-12), method="flexround")
    words, distances, out = target.activations.of("layers.0")
    assert [words.name, distances.name] == ["layers.0.proj.input", "layers.0.proj.input.1"]
    assert words.scale.item() == pytest.approx(100 * distances.scale.item(), rel=1e-3)
    assert out.name == "layers.0.out.input"


def test_calls_that_were_never_looked_at_are_refused():
    with pytest.raises(ValueError, match=r"layers.0.proj.input: .* more than the 5 times"):
        repeated(None)  # once a token and once more; 4 tokens in the example, 6 here


def test_deberta_with_shared_keys_is_quantized():
    hf = pytest.importorskip("transformers", reason="the extra language is not installed")
    config = hf.DebertaV2Config(
        vocab_size=60, hidden_size=16, num_attention_heads=2, num_hidden_layers=2,
        intermediate_size=32, max_position_embeddings=64, relative_attention=True,
        position_buckets=8, share_att_key=True, pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
    )  # fmt: skip
    torch.manual_seed(0)
    network = hf.AutoModelForSequenceClassification.from_config(config)
    target = LanguageAdapter(network, {"input_ids": torch.arange(8).view(2, 4)}, CPU)
    for block in target.blocks():
        names = [site.name.partition("attention.")[2] for site in block.sites]
        assert names[:2] == ["self.query_proj.input", "self.query_proj.input.1"]
        assert [len(site.modules) for site in block.sites] == [3, 2, 1, 1, 1]
    batch = {"input_ids": torch.randint(0, 60, (8, 6), generator=draws())}
    before = target.forward(batch)
    SETTING(
        target, [batch], quantizer=METHODS["rtn"], grid=Grid(8, False, PerTensor()),
        ranges=LpSearch(2.4, 80, 0.01), generator=draws(),
        activation=StaticPerTensor(8, False, 8, 8, None, 8, "quant"),
    )  # fmt: skip
    after = target.forward(batch)
    assert 0 < (after - before).abs().max() < 0.2 * before.abs().max()

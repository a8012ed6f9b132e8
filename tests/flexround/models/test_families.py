"""Today's families of language models: replayed as they run, all of their blocks on the grid.

One tiny member each, on random weights, with the windows and mixtures that the family is known for.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from flexround.activations.schemes import StaticPerTensor
from flexround.grid import Grid, PerChannel
from flexround.models.language_adapter import LanguageAdapter
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.layerwise import Solve
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.solvers.gptq import GPTQ
from flexround.structure import output_first
from tasks.language.tiny_families import FAMILIES, config_of

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

CPU = torch.device("cpu")
EXAMPLE = {"input_ids": torch.arange(8).view(2, 4)}
MIXTURES = ("mixtral", "qwen3_moe", "olmoe")
CAUSAL = [family for family in FAMILIES if family != "bert"]
GRID = Grid(4, False, PerChannel())
EXACT = dict(
    unit="block", lr=1e-3, batch_size=2, schedule="cosine", inputs="quant", act_steps="start",
    act_lr=1e-4, act_iters=0, act_inputs="quant", quant_prob=1.0, keep_best=False,
    precision="float32", compile=False,
)  # fmt: skip
SOLVER = GPTQ(128, 0.01, False, False, False, "ranges")


def network(family, dtype=torch.float32, **changes):
    config = config_of(family)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # transformers' other ways to compute a mixture take no float64.
        options = {"experts_implementation": "eager"} if family in MIXTURES else {}
        model = transformers.AutoModelForCausalLM.from_config(config, **options)
    return model.to(dtype).eval()


def left(family):
    return ["mlp.gate"] if family in MIXTURES else []


def adapter_of(family, dtype=torch.float32):
    return LanguageAdapter(network(family, dtype), EXAMPLE, CPU, left(family))


def tokens(samples=4, length=48, padded=False):
    """Sequences three times as long as the families' windows of 16."""
    draws = torch.Generator().manual_seed(1)
    batch = {"input_ids": torch.randint(5, 1000, (samples, length), generator=draws)}
    if padded:
        mask = torch.ones(samples, length, dtype=torch.long)
        # Shorter than a window: in float64 transformers' Gemma 2 gives NaN where all is masked.
        mask[1, 40:] = mask[2, 36:] = 0
        batch["attention_mask"] = mask
    return batch


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", CAUSAL)
def test_replayed_layers_are_the_networks_own_to_the_last_bits_of_float64(family, padded):
    adapter, batch = adapter_of(family, torch.float64), tokens(padded=padded)
    own = {}

    def see(module, args, output, name):
        own[name] = output[0] if isinstance(output, tuple) else output

    handles = [b.module.register_forward_hook(partial(see, name=b.name)) for b in adapter.blocks()]
    with torch.no_grad():
        adapter.forward(batch)
    for handle in handles:
        handle.remove()
    expected = dict(own)

    calls = adapter.record_calls([batch])
    counts = batch.get("attention_mask", torch.ones(4, 48)).bool()
    for block in adapter.blocks():
        outputs = calls.replay_all(block.module, 3, CPU)
        change = expected[block.name] - calls.inputs
        error = (outputs - expected[block.name])[counts].norm() / change[counts].norm()
        assert error < 1e-12
        calls = calls.with_inputs(outputs)


@pytest.mark.parametrize("family", CAUSAL)
def test_every_matrix_of_a_block_is_quantized_but_a_router(family):
    adapter = adapter_of(family)
    coverage = adapter.coverage()
    # By hand, from transformers' own network: a fused mixture counts as its experts.
    matrices = {
        name: parameter.numel() for name, parameter in network(family).named_parameters()
        if parameter.dim() > 1 and any(part in name for part in ("layers.", "h."))
    }  # fmt: skip
    routers = [name for name in matrices if name.endswith("mlp.gate.weight")]
    assert coverage.total == sum(matrices.values())
    assert coverage.quantized == sum(n for name, n in matrices.items() if name not in routers)
    assert sorted(coverage.left) == sorted(routers)
    assert bool(routers) == (family in MIXTURES)


@pytest.mark.parametrize("method", ["rtn", "gptq", "flexround"])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_tiny_member_is_quantized(family, method):
    adapter, calibration = adapter_of(family), [tokens()]
    shared = dict(grid=GRID, ranges=MinMax(), generator=torch.Generator().manual_seed(0))
    if method == "gptq":
        found = Solve(2, True)(adapter, calibration, quantizer=SOLVER, **shared)
    else:
        quantizer = RTN
        if method == "flexround":
            quantizer = partial(FlexRound, learn_s1=True, use_s3=True, use_s4=True)
        recon = Reconstruction(iters=3 if method == "flexround" else 0, **EXACT)
        found = recon(adapter, calibration, quantizer=quantizer, **shared)
    assert found.keys() == adapter.layers().keys()
    numbers = sum(integers.codes.numel() for integers in found.values())
    assert numbers == adapter.coverage().quantized
    for name, integers in found.items():
        module = adapter.model.get_submodule(name)
        assert torch.equal(output_first(module, module.weight), integers.dequantize())
    with torch.no_grad():
        assert torch.isfinite(adapter.forward(tokens())).all()


@pytest.mark.parametrize("family", MIXTURES)
def test_single_experts_compute_what_the_fused_mixture_does(family):
    fused = network(family, torch.float64)
    with torch.no_grad():
        expected = fused(**tokens()).logits
    found = LanguageAdapter(fused, EXAMPLE, CPU, ["mlp.gate"]).forward(tokens())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("flags", "shape"),
    [
        (dict(is_transposed=False, has_bias=False, has_gate=True), (3, 24, 8)),
        (dict(is_transposed=True, has_bias=True, has_gate=True), (3, 8, 24)),
        (dict(is_transposed=False, has_bias=True, has_gate=False), (3, 12, 8)),
    ],
    ids=["mixtral", "gpt_oss", "nemotron"],
)
def test_every_layout_of_a_fused_mixture_is_taken_apart(flags, shape):
    """The three layouts of transformers' integrations/moe.py, by its own batched forward pass.

    Versions up to 5.17 do not say whether there is a norm behind each expert, which none had.
    """
    from transformers.integrations.moe import batched_mm_experts_forward

    from flexround.models.experts import split_experts

    class Fused(nn.Module):
        num_experts, is_concatenated = 3, True
        config = transformers.PreTrainedConfig()
        _is_expert_parallel = False

        def __init__(self):
            super().__init__()
            vars(self).update(flags)
            self.act_fn = nn.SiLU()
            down = (3, 12, 8) if self.is_transposed else (3, 8, 12)
            name = "gate_up_proj" if self.has_gate else "up_proj"
            setattr(self, name, nn.Parameter(torch.randn(shape)))
            self.down_proj = nn.Parameter(torch.randn(down))
            if self.has_bias:
                width = 24 if self.has_gate else 12
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(3, width)))
                self.down_proj_bias = nn.Parameter(torch.randn(3, 8))

        def _apply_gate(self, out):
            gate, up = out.chunk(2, dim=-1)
            return self.act_fn(gate) * up

        def forward(self, hidden, index, weights):
            self.has_post_expert_norm = False  # which this version of transformers asks for
            try:
                return batched_mm_experts_forward(self, hidden, index, weights)
            finally:
                del self.has_post_expert_norm

    torch.manual_seed(0)
    model = nn.Sequential(Fused()).requires_grad_(False)
    hidden, index = torch.randn(7, 8), torch.rand(7, 3).topk(2).indices
    weights = torch.rand(7, 2)
    expected = model[0](hidden, index, weights)
    split_experts(model)
    assert all(p.dim() <= 2 for p in model.parameters())
    torch.testing.assert_close(model[0](hidden, index, weights), expected)


def test_an_experts_rows_are_in_the_order_of_places_and_tokens():
    """As of the places k that name it one after the other, of each the tokens in their order."""
    from flexround.models.experts import Expert, Experts

    torch.manual_seed(0)
    names = ("up", "down")
    experts = Experts(
        [Expert(nn.Linear(8, 8), nn.Linear(8, 8), names) for _ in range(5)], nn.ReLU()
    )
    index = torch.rand(9, 5).topk(3).indices
    index[index == 2] = 6  # nobody's, and expert 2 without a token
    experts(torch.randn(9, 8), index, torch.rand(9, 3))
    for number in (0, 1, 3, 4):
        expected = torch.where(index.T.eq(number))[1]
        assert torch.equal(experts[number].tokens, expected)
    assert not hasattr(experts[2], "tokens")


def starved():
    """A mixture whose router never sends a token to expert 3: it scores s, -s, s / 2 and 0."""
    model = network("mixtral", num_experts_per_tok=1)
    for layer in model.model.layers:
        scores = layer.mlp.gate.weight.data
        scores[1], scores[2], scores[3] = -scores[0], scores[0] / 2, 0
    return model


def test_an_expert_that_sees_no_token_keeps_round_to_nearest_and_is_named(caplog):
    shared = dict(grid=GRID, ranges=MinMax(), generator=torch.Generator().manual_seed(0))
    nearest = LanguageAdapter(starved(), EXAMPLE, CPU, ["mlp.gate"])
    codes = Reconstruction(iters=0, **EXACT)(nearest, [tokens()], quantizer=RTN, **shared)
    learned = partial(FlexRound, learn_s1=True, use_s3=True, use_s4=True)
    for loop, method in (
        (Solve(2, True), SOLVER),
        (Reconstruction(iters=5, **EXACT | dict(lr=0.02)), learned),
        (Reconstruction(iters=5, start="gptq", **EXACT | dict(lr=0.02)), learned),
    ):
        adapter, log = LanguageAdapter(starved(), EXAMPLE, CPU, ["mlp.gate"]), ReportLog()
        found = loop(adapter, [tokens()], quantizer=method, callbacks=[log], **shared)
        unreached = log.blocks[0].unreached
        assert unreached, "the case is what it is made for"
        assert {name.split(".")[-2] for name in unreached} >= {"3"}
        for name in log.blocks[0].layers:
            same = torch.equal(found[name].codes, codes[name].codes)
            if ".experts." in name:
                assert same == (name in unreached)
        assert f"no calibration token is sent to {unreached[0]}" in caplog.text


def test_an_expert_that_padding_alone_is_sent_to_has_no_range():
    pad = 900
    model = network("mixtral", num_experts_per_tok=1)
    first, embedding = model.model.layers[0], model.model.embed_tokens.weight.data
    first.self_attn.o_proj.weight.data.zero_()
    embedding[:, 0] = -embedding.abs().max()
    embedding[pad, 0] *= -1
    scores = first.mlp.gate.weight.data
    scores[:3, 0], scores[3], scores[3, 0] = 0, 0, 1
    batch = tokens(padded=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    ids[ids == pad] = 5
    ids[mask == 0] = pad

    def ranges(given):
        adapter = LanguageAdapter(copy.deepcopy(model), EXAMPLE, CPU, ["mlp.gate"])
        Reconstruction(iters=0, **EXACT)(
            adapter, [given], quantizer=RTN, grid=GRID, ranges=MinMax(),
            activation=StaticPerTensor(8, False, 8, 8, None, 64, "quant"),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return {quantizer.name for quantizer in adapter.activations.quantizers()}

    # Without a mask padding are tokens.
    assert any(
        name.startswith("model.layers.0.mlp.experts.3.") for name in ranges({"input_ids": ids})
    )
    told = r"model.layers.0.mlp.experts.3.*no calibration sample reaches it"
    with pytest.raises(ValueError, match=told):
        ranges(batch)


def test_a_solver_meets_each_expert_on_its_own_tokens():
    """The error that GPTQ claims for an expert's layer is that of its outputs on its tokens."""
    from flexround.models.experts import every_expert
    from flexround.solvers.hessian import Hessians, objective

    adapter, batch = adapter_of("mixtral"), tokens(padded=True)
    layers = [layer for layer in adapter.layers().values() if layer.expert is not None]
    hessians, seen = Hessians(layers), {}
    mask = batch["attention_mask"].bool()

    def see(module, args, output, layer):
        seen[layer.name] = args[0][mask.flatten()[layer.expert.tokens]]

    handles = [m.module.register_forward_hook(partial(see, layer=m)) for m in layers]
    with torch.no_grad(), every_expert(adapter.model), hessians.collecting(mask):
        adapter.forward(batch)
    for handle in handles:
        handle.remove()
    assert len(layers) == 2 * 4 * 2
    assert sum(len(x) for name, x in seen.items() if "layers.0" in name and "down" in name) == (
        2 * mask.sum()
    )
    for layer in layers:
        weight, rows = layer.module.weight, seen[layer.name]
        change = 0.1 * torch.randn_like(weight)
        true = (rows @ change.T).pow(2).sum(1).mean()
        claimed = objective(weight, weight + change, hessians.of(layer)).sum()
        torch.testing.assert_close(claimed.float(), true, rtol=1e-4, atol=0)


def test_what_can_not_be_quantized_is_refused_unless_it_is_left():
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate.weight .* model.leave=\[mlp.gate\]"):
        LanguageAdapter(network("mixtral"), EXAMPLE, CPU)
    model = network("llama")
    model.model.layers[1].table = nn.Parameter(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"layers.1.table \[3, 4\] .* model.leave=\[table\]"):
        LanguageAdapter(model, EXAMPLE, CPU)
    assert LanguageAdapter(model, EXAMPLE, CPU, ["table"]).coverage().left == (
        "model.layers.1.table",
    )


def test_a_layer_that_never_runs_is_refused():
    model = network("llama")
    model.model.layers[0].spare = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"layers\.0\.spare\.weight"):
        LanguageAdapter(model, EXAMPLE, CPU)


@pytest.mark.parametrize(
    "entry", ["self_attn.k_proj", "*.k_proj", "model.layers.*.self_attn.k_proj"]
)
def test_layers_are_left_by_name_or_pattern(entry):
    adapter = LanguageAdapter(network("llama"), EXAMPLE, CPU, [entry])
    names = [f"model.layers.{i}.self_attn.k_proj" for i in (0, 1)]
    assert adapter.coverage().left == tuple(f"{name}.weight" for name in names)
    assert not any(name in adapter.layers() for name in names)
    sites = [s for b in adapter.blocks() for s in b.sites]
    own = [adapter.model.get_submodule(name) for name in names]
    # What they take is no site; what they give to the cache is one, whatever their weights are.
    assert [s.role for s in sites if set(own) & set(s.modules)] == ["kv", "kv"]
    assert sum(s.role == "kv" for s in sites) == 2 * 2
    whole = LanguageAdapter(network("llama"), EXAMPLE, CPU).coverage()
    assert whole.quantized - adapter.coverage().quantized == 2 * 32 * 64


def test_leaving_everything_is_refused():
    with pytest.raises(ValueError, match="leaves nothing to quantize"):
        LanguageAdapter(network("llama"), EXAMPLE, CPU, ["self_attn", "mlp"])


def test_a_name_that_is_no_weights_is_refused():
    with pytest.raises(ValueError, match=r"model.leave=k_prj names no weight in a block"):
        LanguageAdapter(network("llama"), EXAMPLE, CPU, ["k_prj"])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            lambda: transformers.BloomConfig(vocab_size=1024, hidden_size=64, n_layer=2, n_head=4),
            "has no batch axis|can't be replayed",
        ),
        (
            lambda: transformers.T5Config(
                vocab_size=1024, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4
            ),
            "several lists of layers",
        ),
        (
            lambda: transformers.AlbertConfig(
                vocab_size=1024, hidden_size=64, embedding_size=32, num_attention_heads=4,
                intermediate_size=64, num_hidden_layers=3,
            ),
            "do not run one after the other",
        ),
    ],
    ids=["bloom", "t5", "albert"],
)  # fmt: skip
def test_an_architecture_that_does_not_fit_is_refused_in_one_line(config, told):
    auto = {
        "T5Config": transformers.AutoModelForSeq2SeqLM,
        "AlbertConfig": transformers.AutoModelForSequenceClassification,
    }
    made = config()
    model = auto.get(type(made).__name__, transformers.AutoModelForCausalLM).from_config(made)
    with pytest.raises(ValueError, match=told) as refused:
        LanguageAdapter(model.eval(), EXAMPLE, CPU).record_calls([tokens()])
    assert "\n" not in str(refused.value)


def test_padding_changes_no_solvers_codes():
    """The same texts padded to 25 and to 40 tokens: a Hessian of real tokens alone is the same."""
    found = []
    for length in (25, 40):
        batch = tokens(4, 40)
        batch["attention_mask"] = torch.zeros(4, 40, dtype=torch.long)
        for row, own in enumerate((25, 12, 20, 7)):
            batch["attention_mask"][row, :own] = 1
        batch = {name: values[:, :length] for name, values in batch.items()}
        adapter = adapter_of("llama")
        shared = dict(grid=GRID, ranges=MinMax(), generator=torch.Generator())
        found.append(Solve(4, True)(adapter, [batch], quantizer=SOLVER, **shared))
    same = [torch.equal(found[0][name].codes, found[1][name].codes) for name in found[0]]
    assert sum(same) >= len(same) - 1  # a sum of floats in another order may flip a rounding
    for name in found[0]:
        assert (found[0][name].codes != found[1][name].codes).float().mean() < 1e-3


class TwiceCalled(nn.Module):
    """A layer that projects the tokens and, once more, a table that has no tokens (DeBERTa's)."""

    def __init__(self):
        super().__init__()
        self.inner, self.table = nn.Linear(6, 5), torch.randn(1, 7, 6)

    def forward(self, x):
        """Call the layer on both."""
        return self.inner(x), self.inner(self.table)


@pytest.mark.parametrize("padded", [False, True])
def test_the_hessian_of_a_layer_that_is_called_twice_is_of_all_its_calls(padded):
    from flexround.solvers.hessian import Hessians, objective
    from flexround.structure import Layer

    torch.manual_seed(0)
    model = TwiceCalled()
    other = nn.Linear(6, 4)  # takes the same tensor, once
    layers = [Layer("inner", model.inner), Layer("other", other)]
    hessians, rows = Hessians(layers), []
    for _ in range(3):
        x, mask = torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)
        if padded:
            mask[1, 2:] = False
        with hessians.collecting(mask), torch.no_grad():
            other(x)
            model(x)
        rows += [x[mask], model.table[0]]
    change = 0.1 * torch.randn(5, 6)
    weight = model.inner.weight.detach()
    true = (torch.cat(rows) @ change.T).pow(2).sum(1).mean()
    claimed = objective(weight, weight + change, hessians.of(layers[0])).sum()
    torch.testing.assert_close(claimed.float(), true, rtol=1e-4, atol=0)
    once = torch.cat(rows[::2])
    assert_close = torch.testing.assert_close
    assert_close(hessians.of(layers[1])[0].float(), 2 / len(once) * once.T @ once)

"""Presets of the other methods' tables: each job has what its paper says, and composes in small."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from experiment.build import validate
from experiment.composer import Composer
from experiment.sweeps.plan import EXPERIMENTS, jobs
from tests.conftest import some_slow

COMPOSER = Composer()
PRESETS = sorted(
    f"{folder}/{path.stem}"
    for folder in ("cdquant", "gptq", "lrq", "signround")
    for path in (EXPERIMENTS / folder).glob("*.yaml")
)
OPT = ("opt_125m", "opt_350m", "opt_1_3b", "opt_2_7b", "opt_6_7b", "opt_13b", "opt_30b", "opt_66b")
LLAMA = ("llama_7b", "llama_13b", "llama_33b", "llama_65b")
LLAMA2 = ("llama2_7b", "llama2_13b", "llama2_70b")
RESNETS = ("resnet18", "resnet50")
# Of each preset: models, tasks, methods, bits; the order is theirs.
SWEPT: dict[str, tuple[Any, ...]] = {
    "gptq/opt": (OPT, ("wikitext2", "c4", "ptb"), ("rtn", "gptq"), (4, 3)),
    "gptq/llama": (LLAMA, ("wikitext2",), ("rtn", "gptq"), (4, 3)),
    "gptq/llama_groups": (LLAMA, ("wikitext2",), ("gptq",), (3,)),
    "gptq/squad": (("bert_base",), ("squad",), ("gptq",), (4, 3)),
    "gptq/vision": (RESNETS, ("imagenet",), ("gptq",), (4, 3)),
    "gptq/vision_brecq": (RESNETS, ("imagenet",), ("adaround",), (4, 3)),
    "gptq/vision_learned": (RESNETS, ("imagenet",), ("adaround", "adaquant"), (4, 3)),
    "lrq/common_sense": (LLAMA2, ("zero_shot",), ("flexround", "lrq"), (4, 3)),
    "lrq/common_sense_w4a8": (LLAMA2, ("zero_shot",), ("flexround", "lrq"), (4,)),
    "lrq/common_sense_w8a8": (LLAMA2, ("zero_shot",), ("flexround", "lrq"), (8,)),
    "lrq/mmlu": (LLAMA2, ("mmlu",), ("flexround", "lrq"), (4, 3)),
    "lrq/mmlu_w4a8": (LLAMA2, ("mmlu",), ("flexround", "lrq"), (4,)),
    "lrq/mmlu_w8a8": (LLAMA2, ("mmlu",), ("flexround", "lrq"), (8,)),
    "lrq/wikitext2": (LLAMA2, ("wikitext2",), ("flexround", "lrq"), (4, 3)),
    "cdquant/opt": (OPT[:1] + OPT[2:4], ("wikitext2", "c4"), ("gptq", "cdquant"), (4, 3, 2)),
    "cdquant/quantease": (("opt_1_3b", "opt_13b"), ("wikitext2",), ("cdquant",), (4, 3)),
}
for name, methods, bits in (
    ("w4", ("rtn", "gptq", "signround"), (4,)), ("w4g128", ("rtn", "gptq", "signround"), (4,)),
    ("w3g128", ("rtn", "gptq", "signround"), (3,)), ("w2g128", ("rtn", "gptq", "signround"), (2,)),
    ("awq", ("rtn",), (4,)), ("awq_g128", ("rtn",), (4, 3, 2)),
):  # fmt: skip
    SWEPT[f"signround/{name}"] = (("mistral_7b", *LLAMA2), ("eleven",), methods, bits)
GROUPS = {"gptq/llama_groups", *(f"signround/{n}g128" for n in ("w4", "w3", "w2", "awq_"))}


@cache
def all_jobs(preset, *more):
    """Return (overrides, configuration, choices) of each job of a preset."""
    given = [f"experiment={preset}", "imagenet_dir=somewhere", *more]
    return [(job, *COMPOSER.composed(job)) for job in jobs(given)]


def values(job, name):
    return dict(text.split("=", 1) for text in job).get(name)


def test_every_preset_is_looked_at():
    assert set(PRESETS) == set(SWEPT)


@pytest.mark.parametrize("preset", some_slow(PRESETS, ["gptq/opt"]))  # all its sizes
def test_a_preset_is_its_table_and_every_job_fits_its_targets(preset):
    found = all_jobs(preset)
    models, tasks, methods, bits = SWEPT[preset]
    wanted = {(m, t, q, b) for m in models for t in tasks for q in methods for b in bits}
    assert len(found) == len(wanted)
    own = {
        (choices["model"], choices["task"], choices["quant"], cfg.bits) for _, cfg, choices in found
    }
    assert own == wanted
    for _, cfg, _ in found:
        validate(cfg)


@pytest.mark.parametrize("preset", PRESETS)
def test_grids_are_the_papers(preset):
    """Asymmetric throughout: GPTQ's and auto-round's tables, LRQ's and QuantEase's code."""
    for job, cfg, choices in all_jobs(preset):
        assert not cfg.symmetric, job
        if preset in GROUPS:
            assert (choices["granularity"], cfg.granularity.group_size) == ("per_group", 128)
        else:
            assert choices["granularity"] == "per_channel", job


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.startswith("signround/")])
def test_signrounds_tables_see_pile_10k_and_their_gptq_has_its_tricks(preset):
    """auto-round@b9f3d00, docs/paper_acc.md: 512 samples of 2048 tokens, of 512 in AWQ; 200 its."""
    tokens = 512 if "/awq" in preset else 2048
    for job, cfg, choices in all_jobs(preset):
        assert (cfg.num_samples, cfg.task.seq_len) == (512, tokens), job
        assert cfg.task.calibration_corpus.corpus.path == "NeelNanda/pile-10k"
        assert choices["transform"] == ("awq" if "/awq" in preset else "none")
        assert choices["ranges"] == "min_max"
        if choices["model"] == "mistral_7b":  # its rows are those of Mistral-7B-v0.1-acc.md
            assert cfg.model.source == "mistralai/Mistral-7B-v0.1"
        if choices["quant"] == "gptq":
            own = (cfg.quant.act_order, cfg.quant.static_groups, cfg.recon.sequential)
            assert own == (True, True, True)
        if choices["quant"] == "signround":
            assert (cfg.recon.iters, cfg.recon.lr, cfg.recon.batch_size) == (200, 5e-3, 8)


@pytest.mark.parametrize("preset", ["gptq/opt", "gptq/llama", "gptq/llama_groups"])
def test_gptqs_tables_are_on_its_samples_and_windows(preset):
    """GPTQ sec. 4, and its README for LLaMA: act-order and true-sequential; OPT has neither."""
    for job, cfg, choices in all_jobs(preset):
        own = (cfg.protocol.name, cfg.protocol.window, choices["ranges"], choices["calibration"])
        assert own == ("gptq", 2048, "min_max", "c4"), job
        if choices["quant"] == "gptq":
            tricks = preset != "gptq/opt"
            assert (cfg.num_samples, cfg.task.seq_len) == (128, 2048)
            assert (cfg.quant.act_order, cfg.recon.sequential) == (tricks, tricks), job


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.startswith("lrq/")])
def test_lrqs_tables_have_its_activations(preset):
    """FlexRound_LRQ@59d4665: W4A8 a range for each token; the paper's (i): W8A8 one a tensor."""
    scheme = {"w4a8": "dynamic_per_token", "w8a8": "static_per_tensor"}
    wanted = scheme.get(preset[-4:], "none")
    for job, cfg, choices in all_jobs(preset):
        assert choices["activation"] == wanted, job
        assert (cfg.num_samples, choices["calibration"]) == (512, "c4")
        if wanted != "none":
            assert (cfg.activation.bits, cfg.activation.kv_bits) == (8, 8)


# Its harness; LRQ's MMLU is a script of the authors' own, whose prompts do begin with <s>.
PROMPT_BOS = {"eleven": False, "zero_shot": False, "mmlu": None}


@pytest.mark.parametrize("preset", [p for p in PRESETS if SWEPT[p][1][0] in PROMPT_BOS])
def test_prompts_begin_as_in_the_papers_harness(preset):
    """FlexRound_LRQ@59d4665: lm-eval 0.3.0; auto-round@b9f3d00: 0.4.2; neither gives <s>."""
    for job, cfg, choices in all_jobs(preset):
        assert cfg.task.add_bos_token is PROMPT_BOS[choices["task"]], job


def test_the_resnets_are_torchvisions_and_in_the_units_of_each_method():
    units = {"gptq/vision_learned": "layer", "gptq/vision_brecq": "block", "gptq/vision": None}
    for preset, unit in units.items():
        for _, cfg, _ in all_jobs(preset):
            assert cfg.model.library == "torchvision"
            assert cfg.checkpoint is None
            assert cfg.recon.get("unit") == unit


@pytest.mark.parametrize("preset", PRESETS)
def test_in_small_a_preset_needs_nothing_from_outside(preset):
    found = all_jobs(preset, "scale=smoke")
    assert {choices["quant"] for _, _, choices in found} == set(SWEPT[preset][2])
    for job, cfg, choices in found:
        assert choices["task"] in ("digits", "python_docs", "python_topics"), job
        assert choices["calibration"] in ("own", "c4"), job
        node = cfg.task.get("calibration")
        assert node is None or "column" not in str(node.corpus._target_).lower()
        assert cfg.num_samples == 16
        if "iters" in cfg.recon:
            assert cfg.recon.iters == 2, job
        validate(cfg)

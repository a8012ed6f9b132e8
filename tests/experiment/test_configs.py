"""Every option of the configuration tree composes and fits what it names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiment.build import validate
from experiment.checks import check_idle, check_preset, check_values
from experiment.composer import Composer
from experiment.identity import identity, run_id
from flexround.api.rules import check_moving_zero_point

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = [path.relative_to(CONF).with_suffix("") for path in sorted(CONF.rglob("*.yaml"))]
OPTIONS = [
    f"{path.parts[0]}={'/'.join(path.parts[1:])}"
    for path in FILES
    if len(path.parts) > 1
    and path.parts[0] not in ("tuned", "recipe", "hydra", "search")
    and path.name[0] != "_"
]


composer = cache(Composer)  # reads conf/ once; tests/experiment/test_composer.py holds it to Hydra


def composed(*overrides, config="config"):
    return composer(config).composed(overrides)[0]


def names_in(group):
    """Return the options of a config group, as the command line has them."""
    return [option.partition("=")[2] for option in OPTIONS if option.startswith(f"{group}=")]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_fits_its_target(option):
    # The solvers' loop is for solvers alone, and any network has to be named.
    more = {
        "recon=solve": ["quant=gptq"], "model=hf": ["model.source=tiny:llama"],
        "calibration=hub": ["calibration.corpus.path=any"],
    }.get(option, [])  # fmt: skip
    validate(composed(option, "imagenet_dir=somewhere", "data_dir=.", *more))


@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_every_recipe_fits_its_target(recipe):
    validate(composed(f"recipe={recipe}", "model=tiny_llama", config="finetune"))


TUNED = [path for path in FILES if path.parts[0] == "tuned"]


@pytest.mark.parametrize("path", TUNED, ids=str)
def test_every_tuned_file_is_reached_by_the_names_in_its_own(path):
    """A file that no combination of options selects is dead weight, or misspelt."""
    models, tasks, quants = names_in("model"), names_in("task"), names_in("quant")
    names = {"task": [f"{t}_{q}" for t in tasks for q in quants]}
    names["model"] = [f"{m}_{q}" for m in models for q in quants]
    folders = list(dict.fromkeys(t.partition("/")[0] for t in tasks))
    names["samples"] = folders
    names["folder"] = [f"{f}_{m}_{q}" for f in folders for m in models for q in quants]
    names["pair"] = [f"{t}_{m}_{q}" for t in tasks for m in models for q in quants]
    names["recon"] = [f"{r}_{q}" for r in names_in("recon") for q in quants]
    names["recipe"] = tasks
    names["recipe_pair"] = [f"{t}_{m}" for t in tasks for m in models]
    names["experiment"] = [f"{e}_{q}" for e in names_in("experiment") for q in quants]
    names["experiment_task"] = [f"{e}_{t}" for e in names_in("experiment") for t in tasks]
    names["scale"] = [f"smoke_{r}" for r in names_in("recon")]
    names["scale_method"] = [f"smoke_{q}" for q in quants]
    assert "/".join(path.parts[2:]) in names[path.parts[1]]


def test_a_preset_wins_over_the_tuned_files_and_the_command_line_over_it():
    cfg = composed("recon=fast", "model=smollm2_135m", "task=digits")
    assert cfg.recon.iters == 500, "not the task's 100, not the model's 50"
    cfg = composed("recon=fast", "model=bert_base", "task=glue/mrpc")
    assert cfg.recon.iters == 500, "not the 20,000 of the model on GLUE"
    assert composed("recon=fast", "recon.iters=7").recon.iters == 7
    assert composed("recon=block").recon.iters == 100


SOLVED = ("rtn", "gptq", "gptaq", "qronos", "cdquant")
LEARNED = [quant for quant in names_in("quant") if quant not in SOLVED]


@pytest.mark.parametrize("preset", ["", "brecq_", "qdrop_"])
@pytest.mark.parametrize("quant", LEARNED)
def test_every_learned_method_has_a_tenth_of_its_papers_iterations(quant, preset):
    """On the networks of the papers, whose schedules the files of conf/ hold."""
    where = ["model=resnet18", "task=imagenet", "imagenet_dir=x"]
    if quant in ("lrq", "signround", "signround_v2"):
        where = ["model=llama2_7b"]
    act = ["activation=static_per_tensor"] if preset else []
    plain = composed(f"quant={quant}", f"recon={preset.rstrip('_') or 'block'}", *where, *act)
    fast = composed(f"quant={quant}", f"recon={preset}fast", *where, *act)
    own, paper = fast.recon, plain.recon
    assert own.iters * 10 == paper.iters
    assert own.act_iters * 10 == paper.act_iters
    for kept in ("inputs", "act_steps", "act_inputs", "quant_prob", "keep_best", "batch_size"):
        assert own[kept] == paper[kept]
    assert (fast.act_init_samples, fast.act_ranges_from) == (
        plain.act_init_samples, plain.act_ranges_from,
    )  # fmt: skip
    check_preset(f"{preset}fast", quant)


@pytest.mark.parametrize("iters", [20, 200])
def test_signround_moves_a_weight_by_half_a_step_however_short_it_is(iters):
    """Its rate, 1 / iters, falls to 0 in a line: the rates' sum is (iters + 1) / (2 iters)."""
    recon = composed("quant=signround", "model=smollm2_135m", "recon=fast", f"recon.iters={iters}")
    rates = [recon.recon.lr * (1 - step / iters) for step in range(iters)]
    assert recon.recon.schedule == "linear"
    assert sum(rates) == pytest.approx((iters + 1) / (2 * iters))


def test_a_preset_is_not_taken_for_one_whose_name_begins_alike():
    check_preset("qdrop", "flexround")  # conf/tuned/recon has qdrop_fast_flexround


def test_a_preset_without_a_schedule_for_a_method_names_those_that_have_one():
    with pytest.raises(ValueError, match=r"recon=fast has settings for quant=adaquant, .*, not"):
        check_preset("fast", "mine")


@pytest.mark.parametrize("quant", ["flexround", "lrq"])
def test_llama2_takes_the_authors_search_where_their_scripts_clip(quant):
    """docs/methods.md says how; a tuned file can't choose another member of a group itself."""
    given = ["model=llama2_13b", f"quant={quant}", "ranges=lp_2d"]
    ranges = [composed(*given, f"bits={bits}").ranges for bits in (3, 4)]
    assert {node._target_ for node in ranges} == {"flexround.ranges.LpSearch2D"}
    assert [node.candidates for node in ranges] == [80, 1], "W3A16 clips, W4A16 does not"


@pytest.mark.parametrize("path", [p for p in TUNED if p.parts[1] == "recipe_pair"], ids=str)
def test_every_tuned_recipe_composes_and_fits_its_target(path):
    name = "/".join(path.parts[2:])
    task = next(t for t in names_in("task") if name.startswith(f"{t}_"))
    model = name.removeprefix(f"{task}_")
    recipe = composed(f"model={model}", f"task={task}", config="finetune").recipe
    validate(OmegaConf.create({"recipe": recipe}))
    assert recipe != OmegaConf.load(CONF / "recipe" / "full.yaml")


def test_more_specific_tuned_files_win_and_the_command_line_wins_over_all():
    cfg = composed("model=mobilenet_v2", "task=imagenet", "quant=adaround", "imagenet_dir=x")
    assert cfg.quant.reg_weight == 0.1  # BRECQ: MobileNetV2's own lambda
    cfg = composed("quant=flexround", "recon.iters=7")
    assert cfg.recon.iters == 7


GLUE = [name for name in names_in("task") if name.startswith("glue/")]
ON_GLUE = {
    "bert_base": 2e-4, "bert_large": 2e-4,
    "gpt_neo_125m": 3e-4, "gpt_neo_1_3b": 3e-4, "gpt_neo_2_7b": 3e-4,
}  # fmt: skip


def schedule(*overrides):
    recon = composed(*overrides).recon
    return recon.lr, recon.batch_size, recon.iters


@pytest.mark.parametrize("model", ON_GLUE)
def test_the_schedule_of_glue_is_for_glues_tasks_alone(model):
    """FlexRound, appendix H: 20,000 iterations of 64 samples; language modelling takes 500.

    No paper has another task for these models but those of conf/tuned/pair: there a method has the
    schedule of any model that is in no paper.
    """
    plain = "model=minilm_l6" if model.startswith("bert") else "model=hf model.source=any"
    for task in GLUE:
        own = (f"model={model}", f"task={task}")
        assert schedule(*own, "quant=flexround") == (ON_GLUE[model], 64, 20_000)
        assert schedule(*own, "quant=adaround")[1:] == (64, 20_000)
    others = ("python_topics",) if model.startswith("bert") else ("c4", "python_docs", "zero_shot")
    for task in others:
        for quant in ("flexround", "adaround"):
            more = (f"task={task}", f"quant={quant}")
            assert schedule(f"model={model}", *more) == schedule(*plain.split(), *more)


C4_SAMPLES = [name for name in names_in("model") if "num_samples" in OmegaConf.load(
    CONF / "model" / f"{name}.yaml")]  # fmt: skip


@pytest.mark.parametrize("model", C4_SAMPLES)
def test_a_models_number_of_texts_is_for_the_tasks_that_calibrate_on_them(model):
    """GPTQ's 128 of C4, LLaMA's 512, are no number of GLUE's, SQuAD's or WebNLG's examples."""
    own = {"glue/rte": 1024, "squad": 1024, "webnlg": 128, "python_topics": 128}
    for task, number in own.items():
        assert composed(f"model={model}", f"task={task}").num_samples == number
    texts = composed(f"model={model}", "task=wikitext2").num_samples
    assert texts == OmegaConf.load(CONF / "model" / f"{model}.yaml").num_samples
    assert composed(f"model={model}", "task=squad", "num_samples=7").num_samples == 7


def test_only_c4s_own_samples_are_looked_for_where_the_task_has_its_c4(tmp_path):
    """Another corpus by its name would be C4's folder, with the shard that is evaluated."""
    here = ["model=opt_125m", "task=c4", f"data_dir={tmp_path}"]
    assert composed(*here).calibration.corpus.local == str(tmp_path)
    assert composed(*here, "quant=gptq").calibration.corpus.local == str(tmp_path)
    other = f"calibration_dir={tmp_path}/other"
    for chosen in ("c4", "pile_10k", "redpajama", "text"):
        given = [*here, f"calibration={chosen}"]
        if chosen != "c4":
            assert composed(*given).calibration.corpus.local is None
        assert composed(*given, other).calibration.corpus.local == f"{tmp_path}/other"
        assert composed(*given).task.corpus.local == str(tmp_path)
    hub = ["calibration=hub", "calibration.corpus.path=any"]
    assert composed(*here, *hub).calibration.corpus.local is None
    elsewhere = composed("model=opt_125m", "task=wikitext2", *here[2:], "calibration=c4")
    assert elsewhere.calibration.corpus.local is None


@pytest.mark.parametrize(("bits", "lr"), [(4, 4e-4), (3, 4e-4), (2, 1e-3)])
def test_resnets_on_imagenet_use_the_papers_learning_rates(bits, lr):
    cfg = composed("model=resnet18", "task=imagenet", "imagenet_dir=x", f"bits={bits}")
    assert cfg.recon.lr == lr
    assert cfg.recon.iters == 5000


CHANGES = [
    "bits=3", "symmetric=false", "seed=1", "num_samples=64", "quant=adaround", "model=resnet50",
    "recon=layer", "recon.iters=3", "recon.lr=0.1", "quant.learn_s1=false", "ranges=min_max",
    "granularity=per_channel", "checkpoint=x.pth", "model.first_last_bits=null",
    "stream_dtype=bfloat16", "stream_dtype=float16", "recon.held_out=8", "recon.last_loss=logits",
    "recon.last_loss=logits_mse", "recon.last_loss=next_token",
    "recon.loss=relative", "recon.loss=trimmed",
]  # fmt: skip


def test_every_setting_that_can_change_the_value_changes_the_run_id():
    ids = [run_id(identity(composed(*change))) for change in [[], *([c] for c in CHANGES)]]
    assert len(set(ids)) == len(ids)


def test_a_map_without_layers_is_no_map():
    assert identity(composed("bits_per_layer={}")) == identity(composed())


def test_streams_in_float32_have_the_run_ids_from_before_there_was_a_choice():
    assert "stream_dtype" not in identity(composed())


def test_without_samples_held_out_a_run_has_the_id_from_before_there_could_be_any():
    own = identity(composed("recon.held_out=0", "recon.patience=0"))["recon"]
    assert {"held_out", "patience"}.isdisjoint(own)
    assert "keep_best" in own
    waits = identity(composed("recon.held_out=8", "recon.patience=2"))["recon"]
    assert (waits["held_out"], waits["patience"]) == (8, 2)
    assert "keep_best" not in waits, "the held-out error decides what is kept"


def test_with_the_last_block_like_any_other_a_run_has_the_id_from_before_there_was_a_choice():
    assert "last_loss" not in identity(composed("recon.last_loss=block"))["recon"]
    assert "loss" not in identity(composed("recon.loss=squared"))["recon"]


@pytest.mark.parametrize(("bits", "loss"), [(2, "trimmed"), (3, "trimmed"), (4, "squared")])
def test_signrounds_second_version_leaves_the_largest_errors_out_at_few_bits(bits, loss):
    own = ("model=tiny_llama", "quant=signround_v2", "symmetric=true", f"bits={bits}")
    assert composed(*own).recon.loss == loss
    assert composed(*own, "recon.loss=relative").recon.loss == "relative"


@pytest.mark.parametrize(
    "option", ["stream_dtype=int8", "stream_gib=-1", "stream_gib=nan", "stream_device=gpu"]
)
def test_streams_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=option.partition("=")[0]):
        check_values(composed(option))


@pytest.mark.parametrize("other", ["device=cpu", "stream_gib=1"])
def test_streams_on_a_gpu_go_with_no_option_that_keeps_them_from_it(other):
    with pytest.raises(ValueError, match=f"stream_device=cuda with {other}.*leave one of the two"):
        check_values(composed("stream_device=cuda", other))


@pytest.mark.parametrize(
    "change",
    ["logger=wandb", "device=cpu", "stream_device=cuda", "stream_device=cpu",
     "results_dir=elsewhere", "cache_dir=elsewhere", "rerun=true",
     "progress=false", "group_size=64", "imagenet_dir=x", "stream_gib=1", "offload=true",
     "spill_dir=elsewhere", "save=true"],
)  # fmt: skip
def test_nothing_else_changes_the_run_id(change):
    assert run_id(identity(composed(change))) == run_id(identity(composed()))


def test_the_same_number_is_the_same_setting():
    ids = {
        run_id(identity(composed("quant=adaround", f"quant.beta_start={b}")))
        for b in ("20", "20.0")
    }
    assert len(ids) == 1


def test_a_new_version_of_a_task_is_another_run():
    assert run_id(identity(composed("task.version=2"))) != run_id(identity(composed()))


def test_round_to_nearest_is_one_run_whatever_the_reconstruction():
    assert run_id(identity(composed("quant=rtn", "recon.iters=9", "recon=layer"))) == run_id(
        identity(composed("quant=rtn"))
    )


def test_the_whole_configuration_resolves():
    OmegaConf.to_container(composed(), resolve=True, throw_on_missing=True)


OWN_PROTOCOL = ["gptq", "gptaq", "qronos", "cdquant", "signround"]


@pytest.mark.parametrize("quant", OWN_PROTOCOL)
@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama", "smollm2_135m"])
@pytest.mark.parametrize("task", ["python_docs", "text"])
def test_embedded_and_local_texts_keep_their_own_samples_and_windows(quant, model, task):
    """No method's protocol may ask for a download, or for windows longer than a text's."""
    cfg = composed(f"model={model}", f"task={task}", f"quant={quant}", "data_dir=.")
    plain = composed(f"model={model}", f"task={task}", "quant=flexround", "data_dir=.")
    assert cfg.calibration is None
    assert cfg.granularity._target_.endswith("PerChannel")
    assert (cfg.protocol, cfg.task, cfg.num_samples) == (
        plain.protocol, plain.task, plain.num_samples
    )  # fmt: skip


@pytest.mark.parametrize("quant", OWN_PROTOCOL)
@pytest.mark.parametrize("task", ["digits", "imagenet"])
def test_vision_is_per_tensor_for_every_method(quant, task):
    cfg = composed(f"task={task}", "imagenet_dir=x", f"quant={quant}")
    assert cfg.granularity._target_.endswith("PerTensor")
    assert cfg.num_samples == 1024
    assert "calibration" not in identity(cfg)


@pytest.mark.parametrize("quant", OWN_PROTOCOL)
def test_the_command_line_wins_over_a_methods_protocol(quant):
    given = ["granularity=per_tensor", "calibration=own", "protocol=run_clm", "num_samples=7"]
    cfg = composed("model=llama_7b", f"quant={quant}", *given, "task.seq_len=99")
    assert cfg.granularity._target_.endswith("PerTensor")
    assert cfg.calibration is None
    assert (cfg.protocol.name, cfg.protocol.split, cfg.protocol.window) == (
        "run_clm", "validation", 1024
    )  # fmt: skip
    assert (cfg.num_samples, cfg.task.seq_len) == (7, 99)


@pytest.mark.parametrize("method", ["flexround", "lrq"])
def test_ranges_of_llama_2_may_be_chosen_by_hand(method):
    cfg = composed("model=llama2_7b", f"quant={method}", "ranges=min_max")
    validate(cfg)
    assert "clipping" not in identity(cfg)
    assert composed("model=llama2_7b", f"quant={method}", "clipping=true").ranges.candidates == 80


@pytest.mark.parametrize(
    "options",
    [["ranges=min_max", "clipping=true"],
     ["quant=lrq", "model=tiny_llama", "quant.rank_rule=code", "quant.rank=4"],
     ["quant=lrq", "model=llama2_7b", "quant.rank=512"],
     ["model=tiny_llama", "activation=static_per_tensor", "act_head_bits=4"],
     ["model=opt_125m", "activation=static_per_tensor", "activation.stem_bits=4"],
     ["clipping=false", "ranges.candidates=40"]],
)  # fmt: skip
def test_options_that_a_range_a_rule_or_a_model_leaves_idle_are_refused(options):
    with pytest.raises(ValueError, match=f"{options[-1]} does nothing with the chosen"):
        check_idle(composed(*options), options, options)


@pytest.mark.parametrize("task", ["glue/sst2", "webnlg", "python_topics"])
def test_a_models_own_length_of_samples_is_for_tasks_that_take_one(task):
    """gemma2_2b has task.seq_len and task.begin_with_bos, sixteen models the first."""
    given = ["model=gemma2_2b", f"task={task}"]
    cfg = composed(*given)
    check_idle(cfg, given, given)
    validate(cfg)
    assert not {"seq_len", "begin_with_bos"} & set(cfg.task)
    given.append("task.seq_len=64")
    with pytest.raises(ValueError, match=r"task\.seq_len=64 does nothing with the chosen task"):
        check_idle(composed(*given), given, given)


def test_a_protocol_cuts_the_samples_of_a_harness_that_calibrates_on_a_text():
    """The harness has no windows of its own; calibration=text names the protocol."""
    harness = ["model=tiny_llama", "task=zero_shot"]
    for chosen in ("text", "python_docs"):
        given = [*harness, f"calibration={chosen}", "protocol=gptq"]
        check_idle(composed(*given), given, given)
        assert composed(*given).calibration.protocol == "gptq"
    for given in (["calibration=c4", "protocol=gptq"], ["calibration=text", "protocol.window=64"]):
        with pytest.raises(ValueError, match=f"{given[-1]} does nothing with the chosen task"):
            check_idle(composed(*harness, *given), given, given)


def test_a_rank_counts_under_the_rule_that_takes_it():
    ranks = [composed("quant=lrq", "model=tiny_llama", f"quant.rank={rank}") for rank in (4, 8)]
    assert run_id(identity(ranks[0])) != run_id(identity(ranks[1]))


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ((), True),
        (("activation=static_per_tensor",), True),
        (("activation=static_per_tensor", "activation.symmetric=false"), False),
        (("symmetric=false",), False),
    ],
)
def test_a_search_of_zero_points_is_refused_where_there_are_none(given, refused):
    cfg = composed("ranges=lp_2d", *given)
    if refused:
        with pytest.raises(ValueError, match="moves the zero point, which symmetric=true has none"):
            check_moving_zero_point("lp_2d", cfg.symmetric, cfg.activation)
    else:
        check_moving_zero_point("lp_2d", cfg.symmetric, cfg.activation)
    cfg = composed("ranges=lp", *given)
    check_moving_zero_point("lp", cfg.symmetric, cfg.activation)

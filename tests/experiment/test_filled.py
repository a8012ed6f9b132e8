"""What another option fills is set by that one: names of runs and columns of tables go by it."""

from __future__ import annotations

import pytest

from experiment.checks import check_filled
from experiment.composer import Composer
from experiment.options import filled, groups
from results.records.store import Store

LANGUAGE = ("model=tiny_llama", "task=wikitext2")
# By the option's own name: what fills it, and what chooses the member that has it.
OTHERWISE = {
    "activation.bits=4": ("act_bits", ("activation=static_per_tensor",)),
    "activation.kv_bits=4": ("kv_bits", (*LANGUAGE, "activation=dynamic_per_token")),
    "activation.head_bits=4": ("act_head_bits", ("activation=static_per_tensor",)),
    "granularity.group_size=32": ("group_size", ("granularity=per_group",)),
    "task.checkpoints_dir=a": ("checkpoints_dir", LANGUAGE),
    "task.corpus.local=a": ("data_dir", LANGUAGE),
    "task.root=a": ("imagenet_dir", ("task=imagenet",)),
    "task.expected=1": ("expected_fp", LANGUAGE),
    "task.protocol={window: 64}": ("protocol", LANGUAGE),
    "calibration.corpus.local=a": ("calibration_dir", (*LANGUAGE, "calibration=c4")),
}


@pytest.mark.parametrize("given", OTHERWISE)
def test_it_is_refused_by_its_own_name(given):
    filler, chosen = OTHERWISE[given]
    name = given.partition("=")[0]
    cfg, choices = Composer().composed([*chosen, given])
    with pytest.raises(ValueError, match=rf"^{name}=.*; give {filler}= instead"):
        check_filled(cfg, choices)


@pytest.mark.parametrize(
    "given",
    [
        "act_bits=4",
        "activation.symmetric=false",
        "activation.bits=${act_bits}",
        "recon.compile=true",
    ],
)
def test_the_option_that_fills_it_and_what_a_member_may_have_for_itself_are_taken(given):
    check_filled(*Composer().composed(["activation=static_per_tensor", given]))


def test_every_member_of_the_groups_is_taken_as_it_is():
    composer, seen = Composer(), 0
    for group in groups():
        for member in group.members:
            if not filled(group.name, member):
                continue
            model = () if member in ("imagenet", "digits", "scattered_digits") else LANGUAGE[:1]
            check_filled(*composer.composed([*model, f"{group.name}={member}"]))
            seen += 1
    assert seen > 30


def test_glue_has_what_its_parent_has():
    assert filled("task", "glue/sst2")["task.data.local"] == "data_dir"
    assert filled("task", "no_task") == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("activation=static_per_tensor", "activation.bits=4"), "give act_bits= instead"),
        (("finetuned=true",), "finetuned=true: a task says that of itself"),
        ((*LANGUAGE, "finetuned=true"), "give checkpoint=finetuned"),
        (("model=tiny_bert", "task=glue/sst2", "finetuned=false"), "or checkpoint=PATH"),
    ],
)
def test_run_py_tells_it_in_a_line(cli, results_dir, options, told):
    outcome = cli(*options, "quant=rtn")
    assert outcome.status == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not Store(results_dir).load()


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (
            "model=tiny_llama task=wikitext2",
            "the task LanguageModeling takes networks as they are",
        ),
        ("model=resnet18 task=digits", "finetuned=true: nothing is fine-tuned for this task"),
    ],
)
def test_a_file_of_ones_own_cannot_say_it_for_another_task(
    cli, results_dir, tmp_path, choice, told
):
    """The run would be named by a network that it does not use."""
    (tmp_path / "experiment").mkdir()
    own = tmp_path / "experiment" / "own.yaml"
    own.write_text("# @package _global_\nfinetuned: true\n")
    outcome = cli(
        *choice.split(), "experiment=own", "quant=rtn", f"hydra.searchpath=[file://{tmp_path}]"
    )
    assert outcome.status == 1
    assert told in outcome.err
    assert not Store(results_dir).load()


def test_what_does_nothing_is_not_answered_with_another_option_that_does_nothing(cli):
    outcome = cli(*LANGUAGE, "activation=static_per_tensor", "activation.stem_bits=4", "quant=rtn")
    assert "activation.stem_bits=4 does nothing with the chosen model" in outcome.err

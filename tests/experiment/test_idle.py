"""Options that do nothing for a method are in no run's name, so that they must do nothing."""

from __future__ import annotations

import pytest

from experiment.checks import check_idle
from experiment.composer import Composer
from experiment.identity import identity, run_id
from results.records.store import Store

SHORT = ("num_samples=8", "progress=false", "task.seq_len=16", "protocol.max_windows=8")
LLAMA = ("model=tiny_llama", *SHORT)
# By method: options that are idle for it, with other values than those that they have.
IDLE = {
    "rtn": (
        "recon.e2e_iters=3 recon.e2e_lr=1 recon.iters=3 recon.lr=1 recon.precision=bfloat16",
        "recon.held_out=4 recon.patience=2 recon.inputs=mixed recon.quant_prob=0.1",
        "recon.act_steps=together recon.act_lr=1 recon.loss=relative recon.last_loss=logits",
        "recon.act_steps=after recon.act_iters=3 recon.act_inputs=fp recon.unit=layer",
    ),
    "adaquant": ("recon.lr=1",),
}  # fmt: skip
# Under which the samples and the loop's passes decide more than they do for weights alone.
MORE = (
    "transform=awq", "transform.candidates=3", "transform.clip=false", "ranges=min_max",
    "activation=static_per_tensor", "act_bits=4", "bits=3",
)  # fmt: skip


UNLEARNED = ("rtn", "cdquant")
# What leaves options without effect besides the method: a choice, swept as with others.
UNDER = {
    "start": ("cdquant", ("quant.start=choice(owc)",), "quant.gptq.damp=choice(0.5)"),
    "mode": ("cdquant", ("quant.mode=choice(cyclic)",), "quant.seed=choice(7)"),
    "e2e": ("flexround", ("recon.e2e_iters=choice(0)",), "recon.e2e_lr=1 recon.e2e_batch_size=1"),
    "patience": ("flexround", ("recon.patience=choice(1)", "recon.held_out=4"),
                 "recon.keep_best=true"),
    "clip": ("rtn", ("transform=awq", "transform.clip=choice(false)"),
             "transform.clip_candidates=2"),
    "ranges": ("rtn", ("ranges=choice(min_max)",), "clipping=false"),
    "activation": ("rtn", ("activation=choice(dynamic_per_token)", "act_bits=4"),
                   "act_init_samples=1 act_ranges_from=fp"),
}  # fmt: skip


def value_of(cli, results_dir, method, *options):
    """Return the id and value of a sweep's run of method, computed anew whatever is recorded."""
    learns = () if method in UNLEARNED else ("recon.iters=2", "recon.batch_size=4")
    # Of a sweep over all that makes options idle, as in one with other methods.
    args = (*LLAMA, f"quant=choice({method})", *learns, *options, "rerun=true")
    outcome = cli("-m", *args)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    return record.run_id, record.metrics


@pytest.mark.parametrize("method", IDLE)
def test_what_is_idle_for_a_method_changes_nothing(cli, results_dir, method):
    more = MORE if method == "rtn" else ()
    plain = value_of(cli, results_dir, method, *more)
    for options in IDLE[method]:
        assert value_of(cli, results_dir, method, *more, *options.split()) == plain, options


@pytest.mark.parametrize(("method", "choice", "idle"), UNDER.values(), ids=UNDER)
def test_what_is_idle_under_a_choice_changes_nothing(cli, results_dir, method, choice, idle):
    plain = value_of(cli, results_dir, method, *choice)
    assert value_of(cli, results_dir, method, *choice, *idle.split()) == plain


def test_round_to_nearest_learns_no_scales_end_to_end(cli, results_dir):
    """Of weights alone, where they can be learned."""
    plain = value_of(cli, results_dir, "rtn")
    assert value_of(cli, results_dir, "rtn", "recon.e2e_iters=3") == plain


STATIC = "activation=static_per_tensor"
# What another option of the loop switches on, which its presets have switched off.
SWITCHED = [
    (("recon.inputs=mixed",), "recon.quant_prob"),
    ((STATIC, "recon.act_steps=together"), "recon.quant_prob"),
    ((STATIC, "recon.act_steps=together"), "recon.act_lr"),
    ((STATIC, "recon.act_steps=after"), "recon.act_lr"),
    ((STATIC, "recon.act_steps=after"), "recon.act_iters"),
    ((STATIC, "recon=brecq", "recon.inputs=mixed"), "recon.quant_prob"),
    ((STATIC, "recon=qdrop", "recon.act_steps=after"), "recon.act_iters"),
]


def composed(options):
    return Composer().composed(options)[0]


def name_of(*options):
    return run_id(identity(composed(options)))


@pytest.mark.parametrize(("options", "name"), SWITCHED, ids=str)
def test_what_another_option_switches_on_is_taken_and_named(options, name):
    given = [[*options, f"{name}={value}"] for value in ("1", "0.5" if "prob" in name else "2")]
    for own in given:
        check_idle(composed(own), own, own)
    assert name_of(*given[0]) != name_of(*given[1])


# What goes by the batches of the loop, whatever the method learns.
BATCHED = {
    "allocation": ("allocation=delta_loss", "allocation.average_bits=3.3"),
    "ranges": (STATIC, "act_ranges_from=fp"),
}


@pytest.mark.parametrize("case", BATCHED)
def test_batches_of_a_method_that_learns_nothing_count_where_something_goes_by_them(case):
    """Scores of layers are sums over mini-batches of absolute values, which no sum undoes."""
    under, sizes = ("model=tiny_llama", "quant=rtn", *BATCHED[case]), (1, 16)
    names = set()
    for size in sizes:
        own = [*under, f"recon.batch_size={size}"]
        check_idle(composed(own), own, own)
        names.add(name_of(*own))
    assert len(names) == len(sizes)
    for name in ("iters", "lr", "unit"):
        own = [*under, f"recon.{name}={'layer' if name == 'unit' else 1}"]
        with pytest.raises(ValueError, match=f"recon.{name}=.* does nothing"):
            check_idle(composed(own), own, own)
        assert name_of(*own) == name_of(*under)
    own = [*under, "recon=fast"]
    if case == "allocation":
        with pytest.raises(ValueError, match=r"recon=fast does nothing"):
            check_idle(composed(own), own, own)
    own = ["model=tiny_llama", "quant=rtn", "recon.batch_size=1"]
    with pytest.raises(ValueError, match=r"recon.batch_size=1 does nothing"):
        check_idle(composed(own), own, own)


def test_an_allocations_batches_are_in_the_command_of_its_record(cli, results_dir):
    args = (*LLAMA, "quant=choice(rtn)", *BATCHED["allocation"], "recon.batch_size=4")
    outcome = cli("-m", *args, "recon.iters=1")
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert "recon.batch_size=4" in record.overrides
    assert "recon.iters=1" not in record.overrides


@pytest.mark.parametrize("name", ["quant_prob", "act_lr", "act_iters", "act_inputs"])
def test_what_nothing_switches_on_is_refused(name):
    own = [STATIC, f"recon.{name}={'fp' if name == 'act_inputs' else 1}"]
    with pytest.raises(ValueError, match=f"{name}=.* does nothing with the chosen recon"):
        check_idle(composed(own), own, own)


def test_when_step_sizes_are_learned_is_never_idle():
    own = [STATIC, "recon.act_steps=start"]
    check_idle(composed(own), own, own)
    assert name_of(*own) == name_of(STATIC)
    names = {name_of(STATIC, f"recon.act_steps={when}") for when in ("start", "after", "together")}
    assert len(names) == 3


def test_in_a_sweep_over_presets_an_option_serves_those_that_take_it():
    sweep = [STATIC, "recon=block,qdrop", "recon.quant_prob=0.1"]
    for member in ("block", "qdrop"):
        own = [STATIC, f"recon={member}", "recon.quant_prob=0.1"]
        check_idle(composed(own), own, sweep)

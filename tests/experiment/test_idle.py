"""Options that do nothing for a method are in no run's name, so that they must do nothing."""

from __future__ import annotations

import pytest

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


def value_of(cli, results_dir, method, *options):
    """Return the id and value of a sweep's run of method, computed anew whatever is recorded."""
    learns = () if method == "rtn" else ("recon.iters=2", "recon.batch_size=4")
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


def test_round_to_nearest_learns_no_scales_end_to_end(cli, results_dir):
    """Of weights alone, where they can be learned."""
    plain = value_of(cli, results_dir, "rtn")
    assert value_of(cli, results_dir, "rtn", "recon.e2e_iters=3") == plain

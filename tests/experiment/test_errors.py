"""What Hydra refuses is told in the words of its user, and of nothing else."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ("quant=rtn,gptq", "hydra.sweeper.max_batch_size=0"),
            "error: hydra.sweeper.max_batch_size: give 1 or more, or leave it out",
        ),
        (
            ("quant=flexround", "hydra/sweeper=optuna", "hydra.sweeper.trials=0"),
            "error: hydra.sweeper.trials=0: give 1 or more",
        ),
    ],
)
def test_a_sweeper_refuses_in_one_line(cli, results_dir, args, line):
    outcome = cli("-m", "model=tiny_llama", *args)
    assert outcome.status == 1
    assert outcome.err.strip().splitlines()[-1] == line
    assert not list(results_dir.glob("*.json"))

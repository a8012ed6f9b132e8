"""Door of fine-tuning: `python finetune.py model=bert_base task=glue/mrpc`.

The network is written to checkpoints_dir/TASK/MODEL, where `run.py` looks for it.
"""

from __future__ import annotations

from flexround.utils import leaving

if __name__ == "__main__":
    leaving.listen()  # before the imports, which take seconds

import hydra
from omegaconf import DictConfig

from experiment.command_line import command_line
from experiment.config import register
from experiment.finetune import check_used, finetune
from experiment.outcome import outcome, write_outcome
from experiment.progress import quiet_libraries

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """Fine-tune once, or with -m many times."""
    quiet_libraries(cfg.progress)
    with outcome():
        check_used(cfg)
        write_outcome(checkpoint=str(finetune(cfg)))


if __name__ == "__main__":
    command_line(main, "the same command makes what is missing", "finetune.py")

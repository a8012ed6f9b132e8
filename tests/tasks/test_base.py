"""tasks/base.py is the whole contract: no more is called on a task, and every task keeps it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from tasks.base import FineTunable, Task
from tasks.vision.base import VisionTask, in_topk

ROOT = Path(__file__).resolve().parents[2]
# Whose code calls tasks, and what they call them there.
CALLERS = {
    "task": [
        ROOT / "run.py", *ROOT.glob("experiment/*.py"), *ROOT.glob("experiment/artifacts/*.py"),
    ],
    "source": [ROOT / "flexround" / "models" / f"{name}.py" for name in ("vision", "language")],
}  # fmt: skip
FINETUNING = ROOT / "experiment" / "finetune.py"


def declared(contract):
    """Return the public names that contract and its bases declare."""
    return {
        name for base in contract.__mro__ if issubclass(base, Task)
        for name in (*vars(base), *base.__annotations__) if not name.startswith("_")
    }  # fmt: skip


def called(path, name):
    """Return the attributes that the file at path takes of a task that is called name there."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        held = isinstance(owner, ast.Attribute) and owner.attr == name
        if held and isinstance(owner.value, ast.Name) and owner.value.id != "cfg":
            found.add(node.attr)  # draft.task.metric, and not the settings' cfg.task.name
        elif isinstance(owner, ast.Name) and owner.id == name:
            found.add(node.attr)
    return found


def test_nothing_is_called_that_the_contract_does_not_declare():
    taken = {path: called(path, name) for name, paths in CALLERS.items() for path in paths}
    finetuning = taken.pop(FINETUNING)
    assert set().union(*taken.values()) == declared(Task)
    assert finetuning - declared(Task) == declared(FineTunable) - declared(Task)


def test_every_task_of_the_command_line_keeps_the_contract():
    files = [path for path in ROOT.glob("conf/task/**/*.yaml")]
    targets = {
        node.task._target_ for path in files
        if "_target_" in (node := OmegaConf.load(path)).get("task", {})
    }  # fmt: skip
    assert len(targets) >= 7
    for target in targets:
        module, _, name = target.rpartition(".")
        task = getattr(importlib.import_module(module), name)
        assert issubclass(task, Task)
        assert not task.__abstractmethods__, f"{target} lacks {set(task.__abstractmethods__)}"


class Two(VisionTask):
    """Four samples of three classes in two batches, whose images are the logits themselves."""

    num_classes, version, topk = 3, 1, (1, 2)
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [1, 2, 3]])
    labels = torch.tensor([0, 1, 2, 2])
    load = example = calibration = None

    def test_batches(self):
        """Yield a batch of three samples and one of one."""
        yield from zip(self.logits.split(3), self.labels.split(3), strict=True)


def test_topk_is_the_share_of_labels_among_the_k_largest_logits():
    task, identity = Two(), SimpleNamespace(forward=lambda images: images)
    assert task.evaluate(identity) == {
        "top1": 50.0,
        "top2": 75.0,
    }
    assert {name: found.tolist() for name, found in task.outcomes.items()} == {
        "top1": [True, False, False, True]
    }
    assert in_topk(Two.logits, Two.labels, 9).all()  # more than there are classes


def test_full_precision_has_to_be_better_than_twice_a_guess():
    task = Two()
    task.check_full_precision({"top1": 66.7})
    with pytest.raises(ValueError, match=r"chance is 33\.33 %"):
        task.check_full_precision({"top1": 66.6})


def test_a_task_that_needs_the_whole_network_refuses_offload():
    with pytest.raises(ValueError, match=r"offload=true: the task Two .*offload=false"):
        Two().outline(None, None)

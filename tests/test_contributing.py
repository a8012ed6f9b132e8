"""CONTRIBUTING's examples do what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import flexround.quantizers
from flexround.models import vision
from results.records.store import Store
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent


def added(path: str) -> str:
    """Return the lines that CONTRIBUTING's diff of path adds."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (diff,) = re.findall(rf"```diff\n(?:--- .*\n)?\+\+\+ b/{re.escape(path)}\n(.*?)```", text, re.S)
    return "".join(line[1:] + "\n" for line in diff.splitlines() if line.startswith("+"))


def test_the_new_quantizer_runs(cli, results_dir, tmp_path, monkeypatch):
    (tmp_path / "learned_step.py").write_text(added("flexround/quantizers/learned_step.py"))
    (tmp_path / "conf" / "quant").mkdir(parents=True)
    yaml = added("conf/quant/learned_step.yaml")
    (tmp_path / "conf" / "quant" / "learned_step.yaml").write_text(yaml)
    paths = [*flexround.quantizers.__path__, str(tmp_path)]
    monkeypatch.setattr(flexround.quantizers, "__path__", paths)
    outcome = cli(
        *TINY, "quant=learned_step", "bits=3", "recon.iters=10", "num_samples=64",
        f"hydra.searchpath=[file://{tmp_path}/conf]",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert record.quant == "learned_step"
    assert sum(b["error_after"] - b["error_before"] for b in record.blocks) < 0


def test_the_new_model_needs_its_line(monkeypatch):
    assert "name: regnet_x_400mf" in added("conf/model/regnet_x_400mf.yaml")
    model = vision.VisionModel("torchvision", "regnet_x_400mf", None, 8, False, False)
    example, cpu = torch.randn(2, 3, 64, 64), torch.device("cpu")
    with pytest.raises(ValueError, match="chain of blocks"):
        vision.VisionAdapter(model.build(10), example, 8, cpu)
    name = added("flexround/models/vision.py").strip().strip('",')
    monkeypatch.setattr(vision, "BLOCK_CLASSES", (*vision.BLOCK_CLASSES, name))
    adapter = vision.VisionAdapter(model.build(10), example, 8, cpu)
    assert len(adapter.blocks()) == 2 + 22  # stem, head, and RegNetX-400MF's 1 + 2 + 7 + 12 blocks

"""The diffs of docs/adding.md apply as they stand, and do what the guide says."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from experiment.build import build, validate
from flexround.grid import Grid, PerChannel
from flexround.models import vision
from flexround.ranges import MinMax
from results.records.store import Store
from tests.conftest import TINY
from tests.results.records.test_store import record

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "adding.md").read_text()
SHORT = (*TINY, "bits=3", "num_samples=64")


class Checkout:
    """A folder with the files that the guide's diffs make, found before the repository's own."""

    def __init__(self, root, monkeypatch):
        self.root, self._monkeypatch = root, monkeypatch
        self.conf = f"hydra.searchpath=[file://{root}/conf]"

    def apply(self, path):
        """Apply the guide's diff of path; a Python module of it is imported from then on."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(patched(path))
        if file.suffix != ".py":
            return None
        package, _, _ = path.rpartition("/")
        package = package.replace("/", ".")
        if (ROOT / path).exists():
            name = package if file.stem == "__init__" else f"{package}.{file.stem}"
            return self._import(name, file)
        holder = importlib.import_module(package)
        self._monkeypatch.setattr(holder, "__path__", [*holder.__path__, str(file.parent)])
        return None

    def _import(self, name, file):
        """Import file in the place of the module called name."""
        within = getattr(sys.modules[name], "__path__", None)
        spec = importlib.util.spec_from_file_location(
            name, file, submodule_search_locations=within and list(within)
        )
        module = importlib.util.module_from_spec(spec)
        self._monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module


def patched(path):
    """Return the file at path with the guide's diff of it applied."""
    (diff,) = re.findall(
        rf"```diff\n(?:--- .*\n)?\+\+\+ b/{re.escape(path)}\n(.*?)```", GUIDE, re.S
    )
    text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
    for hunk in diff.split("@@\n"):
        before, after = (
            "".join(line[1:] for line in hunk.splitlines(keepends=True) if line[0] in signs)
            for signs in (" -", " +")
        )
        assert (text.count(before) == 1) if before else (text == ""), f"{path} has not:\n{before}"
        text = text.replace(before, after, 1)
    return text


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    before = set(sys.modules)
    yield Checkout(tmp_path, monkeypatch)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_method_lowers_the_error(cli, results_dir, checkout):
    checkout.apply("flexround/quantizers/learned_step.py")
    checkout.apply("conf/quant/learned_step.yaml")
    outcome = cli(*SHORT, "quant=learned_step", "recon.iters=10", checkout.conf)
    assert outcome.status == 0, outcome.err
    (found,) = Store(results_dir).load()
    assert found.quant == "learned_step"
    method = importlib.import_module("flexround.quantizers.learned_step").LearnedStep
    weight = torch.linspace(-1, 1, 32).view(4, 8)
    quantizer = method(weight, grid=Grid(3, True, PerChannel()), ranges=MinMax())
    quantizer.log_s1.data.fill_(-0.3)  # small enough that some weights are clipped
    torch.testing.assert_close(quantizer(weight), quantizer.reference(weight))
    assert sum(b["error_after"] - b["error_before"] for b in found.blocks) < 0


def test_the_solvers_scales_beat_those_of_min_max(cli, results_dir, checkout):
    checkout.apply("flexround/solvers/clipped_rounding.py")
    checkout.apply("conf/quant/clipped_rounding.yaml")
    outcome = cli("-m", *SHORT, "quant=clipped_rounding,gptq", checkout.conf)
    assert outcome.status == 0, outcome.err
    found = {r.quant: [(b["error_before"], b["error_after"]) for b in r.blocks]
             for r in Store(results_dir).load()}  # fmt: skip
    # A solver's error before is that of round-to-nearest on the solver's own scales.
    assert all(before == after for before, after in found["clipped_rounding"])
    nearest_on_min_max = [before for before, _ in found["gptq"]]
    assert sum(after for _, after in found["clipped_rounding"]) < sum(nearest_on_min_max)


def test_the_model_needs_its_line(checkout):
    checkout.apply("conf/model/regnet_x_400mf.yaml")
    cfg = OmegaConf.create(
        {"model": OmegaConf.load(checkout.root / "conf" / "model" / "regnet_x_400mf.yaml")}
    )
    validate(cfg)
    model, example, cpu = build(cfg.model), torch.randn(2, 3, 64, 64), torch.device("cpu")
    with pytest.raises(ValueError, match="chain of blocks"):
        vision.VisionAdapter(model.build(10), example, model.first_last_bits, cpu)
    after = checkout.apply("flexround/models/vision.py")
    blocks = after.VisionAdapter(model.build(10), example, model.first_last_bits, cpu).blocks()
    assert len(blocks) == 2 + 22  # stem, head, and RegNetX-400MF's 1 + 2 + 7 + 12 blocks


def test_the_task_measures_turned_digits(cli, results_dir, checkout):
    checkout.apply("tasks/vision/turned_digits.py")
    checkout.apply("conf/task/turned_digits.yaml")
    turned = cli("-m", *TINY[:2], *SHORT[3:], "quant=rtn", "task=turned_digits",
                 "task.degrees=0,20", checkout.conf)  # fmt: skip
    upright = cli(*SHORT, "quant=rtn")
    assert (turned.status, upright.status) == (0, 0), turned.err + upright.err
    found = {(r.task, r.settings["task"].get("degrees")): r for r in Store(results_dir).load()}
    still, moved, digits = (
        found[key] for key in (("turned_digits", 0), ("turned_digits", 20), ("digits", None))
    )
    assert (still.value, still.fp_value) == (digits.value, digits.fp_value)
    assert moved.fp_value < still.fp_value


def test_the_plot_draws_every_seed(tmp_path, results_dir, checkout):
    pytest.importorskip("matplotlib")
    import results.plots  # noqa: F401
    from results.__main__ import main

    results_dir.mkdir()
    for seed, value in enumerate((90.0, 92.0, 70.0)):
        settings = {"bits": 4, "seed": seed}
        Store(results_dir).write(record(f"run{seed}", value, seed=seed, settings=settings))
    checkout.apply("results/plots/seeds.py")
    plots = checkout.apply("results/plots/__init__.py")
    given = ["plot", "seeds", "--results-dir", str(results_dir), "--out", str(tmp_path / "out")]
    assert main(given) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"seeds.svg", "seeds.png"}
    drawn = plots.figures("seeds", Store(results_dir).load())["seeds"]
    dots = [list(line.get_ydata()) for line in drawn.axes[0].lines]
    assert [90.0, 92.0, 70.0] in dots

"""The plots draw what the records hold."""

from __future__ import annotations

import sys

import pytest
import torch

from flexround.grid import Grid, PerChannel, QuantizedTensor
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from results.__main__ import main
from results.records.store import Store
from tests.results.records.test_store import record

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from results.plots import KINDS, figures, write  # noqa: E402
from results.plots.shift import shift  # noqa: E402


def unit(name, before, after, seconds=1.0, state=2**20, curve=(), **more):
    """Return what a record holds of a unit."""
    cost = {"parameters": 1, "state_bytes": state, "flops": 1.0}
    return {
        "name": name, "layers": {name: 4}, "error_before": before, "error_after": after,
        "seconds": seconds, "peak_memory_gib": 1.0, "cost": cost, "objectives": {},
        "curve": [list(point) for point in curve], **more,
    }  # fmt: skip


def run(quant, bits, value, seed=0, samples=32, **changes):
    """Return a finished run; its two units' errors follow from its bits and its seed."""
    learns = quant != "rtn"
    curve = [(0, 8.0 + seed), (10, 4.0 + seed), (20, 2.0 + seed)] if learns else []
    blocks = [
        unit("layers.0", 8.0 + seed, 4.0 / bits + seed, 1.0, 2**20, curve),
        unit("layers.1", 16.0 + seed, 8.0 / bits + seed, 2.0, 3 * 2**20, curve),
    ]
    settings = {"bits": bits, "seed": seed, "num_samples": samples}
    facts = dict(quant=quant, bits=bits, seed=seed, settings=settings, blocks=blocks)
    name = f"{quant}{bits}{seed}{samples}" + "".join(map(str, changes.values()))
    return record(name, value, **(facts | {"device": "cpu"} | changes))


def sweep():
    """Return two methods at two widths, three seeds of one point, two sample counts of another."""
    return [
        run("rtn", 3, 50.0), run("rtn", 4, 90.0),
        *(run("flexround", 4, 95.0 + 2 * seed, seed=seed) for seed in range(3)),
        run("flexround", 3, 80.0),
    ]  # fmt: skip


def more_samples():
    return [run("flexround", 4, 70.0, samples=8), run("rtn", 4, 90.0, samples=8), *sweep()]


def drawn(ax):
    """Return the lines of a panel as {label: (x, y)}."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in ax.lines
        if line.get_label()[0] != "_"
    }


def only(pictures):
    (figure,) = pictures.values()
    return figure


def test_bits_are_means_over_seeds_with_their_deviation():
    (ax,) = only(figures("bits", sweep())).axes
    lines = drawn(ax)
    assert lines["rtn"] == ([3, 4], [50.0, 90.0])
    assert lines["flexround"] == ([3, 4], [80.0, 97.0])
    assert lines["full precision"][1] == [98.0, 98.0]
    (bars,) = ax.collections
    ((_, low), (_, high)) = bars.get_segments()[0]
    assert (low, high) == (95.0, 99.0)
    assert ax.get_ylabel() == "top1 [%] (higher is better)"


def test_a_failed_run_is_no_point():
    broken = record("x", status="failed", quant="rtn", bits=2, settings={"num_samples": 32})
    (ax,) = only(figures("bits", [broken, *sweep()])).axes
    assert drawn(ax)["rtn"][0] == [3, 4]


def test_perplexity_says_that_lower_is_better_and_is_logarithmic_where_it_explodes():
    language = dict(metric="perplexity", higher_is_better=False, fp_value=20.0)
    runs = [
        run("rtn", b, v, metrics={"perplexity": v}, **language) for b, v in ((2, 1e6), (4, 25.0))
    ]
    (ax,) = only(figures("bits", runs)).axes
    assert ax.get_ylabel() == "perplexity (lower is better, log scale)"
    assert ax.get_yscale() == "log"
    near = [
        run("rtn", b, v, metrics={"perplexity": v}, **language) for b, v in ((3, 40.0), (4, 25.0))
    ]
    (ax,) = only(figures("bits", near)).axes
    assert (ax.get_yscale(), ax.get_ylabel()) == ("linear", "perplexity (lower is better)")


def with_activations(bits, act_bits, value, **more):
    settings = {"bits": bits, "seed": 0, "act_bits": act_bits, **more}
    return run("flexround", bits, value, settings=settings)


def test_bits_of_activations_are_ticks_or_where_those_can_not_tell_labels():
    alike = [with_activations(b, b, 90.0 + b) for b in (3, 4)]
    (ax,) = only(figures("bits", alike)).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["W3A3", "W4A4"]
    assert list(drawn(ax)) == ["flexround", "full precision"]
    both = [with_activations(b, a, 10.0 * a + b) for b in (3, 4) for a in (4, 8)]
    (ax,) = only(figures("bits", both)).axes
    lines = drawn(ax)
    assert lines["flexround, A4"] == ([3, 4], [43.0, 44.0])
    assert lines["flexround, A8"] == ([3, 4], [83.0, 84.0])


def test_a_label_names_what_tells_runs_apart_and_no_more():
    """A stem that follows the width, and a setting that follows the stem, would break the line."""
    runs = [
        with_activations(b, b, 90.0, act_stem_bits=stem, recon={"act_steps": steps})
        for b in (3, 4)
        for stem, steps in ((8, "after"), (b, "together"))
    ]
    (ax,) = only(figures("bits", runs)).axes
    assert list(drawn(ax))[:2] == ["flexround, act_steps after", "flexround, act_steps together"]
    (ax,) = only(figures("bits", runs, by=["act_stem_bits"])).axes
    assert list(drawn(ax))[:2] == ["flexround, act_stem_bits 8", "flexround, act_stem_bits = bits"]


def test_samples_are_the_axis_and_each_width_a_panel():
    wide, narrow = only(figures("samples", more_samples())).axes
    assert wide.get_title("left") == "resnet18, digits, W4"
    assert drawn(wide)["flexround"] == ([8, 32], [70.0, 97.0])
    assert drawn(wide)["rtn"] == ([8, 32], [90.0, 90.0])
    assert drawn(narrow)["flexround"] == ([32], [80.0])


def test_blocks_are_each_units_error_before_and_after():
    figure = only(figures("blocks", [*sweep()[2:5], sweep()[1]]))
    before, after = figure.axes
    assert drawn(before)["flexround"] == ([0, 1], [9.0, 17.0])
    assert drawn(after)["flexround"] == ([0, 1], [2.0, 3.0])
    assert drawn(after)["rtn"] == ([0, 1], [1.0, 2.0])
    assert [tick.get_text() for tick in before.get_xticklabels()] == ["0", "1"]
    assert before.get_yscale() == after.get_yscale() == "log"


def test_a_solvers_error_is_another_quantity_and_has_a_row_of_its_own():
    solved = [unit("layers.0", 2.0, 1.0, objectives={"layers.0": [2.0, 1.0]})]
    rows = only(figures("blocks", [run("rtn", 4, 90.0), run("gptq", 4, 90.0, blocks=solved)])).axes
    assert [list(drawn(ax)) for ax in rows] == [["rtn"]] * 2 + [["gptq"]] * 2
    assert "layers' outputs" in rows[2].get_ylabel()


def test_curves_are_means_over_seeds_unit_by_unit():
    pictures = figures("curves", sweep())
    assert list(pictures) == ["curves-resnet18-digits-W4", "curves-resnet18-digits-W3"]
    first, second = pictures["curves-resnet18-digits-W4"].axes
    assert (first.get_title("left"), second.get_title("left")) == ("layers.0", "layers.1")
    assert drawn(first) == {"flexround": ([0, 10, 20], [9.0, 5.0, 3.0])}


def test_seeds_that_ended_early_are_averaged_as_far_as_all_go():
    ends = {0: [(0, 8.0), (10, 4.0), (20, 2.0)], 1: [(0, 10.0), (5, 6.0), (15, 4.0)]}
    runs = [
        run("flexround", 4, 90.0, seed=seed, blocks=[unit("layers.0", 2.0, 1.0, curve=curve)])
        for seed, curve in ends.items()
    ]
    (ax,) = only(figures("curves", runs)).axes
    assert drawn(ax) == {"flexround": ([0, 5, 15], [9.0, 6.0, 3.5])}  # (8 + 4) / 2 at 5 is 6


def test_of_very_many_units_some_are_drawn_and_the_figure_says_so():
    blocks = [unit(f"layers.{i}", 2.0, 1.0, curve=[(0, 2.0), (9, 1.0)]) for i in range(80)]
    figure = only(figures("curves", [run("flexround", 4, 90.0, blocks=blocks)]))
    titles = [ax.get_title("left") for ax in figure.axes]
    assert (len(titles), titles[0], titles[-1]) == (36, "layers.0", "layers.79")
    assert "36 of 80 units" in figure.get_suptitle()


def test_cost_is_a_point_a_run():
    figure = only(figures("cost", sweep()[1:5]))
    seconds, state = figure.axes
    assert drawn(seconds)["flexround"] == ([3.0] * 3, [95.0, 97.0, 99.0])
    assert drawn(state)["rtn"] == ([3.0], [90.0]), "MiB of the largest unit"


def test_costs_of_two_devices_are_never_in_one_panel():
    runs = [run("rtn", 4, 90.0), run("flexround", 4, 90.0, device="a GPU")]
    titles = [ax.get_title("left") for ax in only(figures("cost", runs)).axes]
    assert titles[::2] == ["resnet18, digits, W4, cpu", "resnet18, digits, W4, a GPU"]


def test_records_from_before_costs_and_curves_were_kept():
    old = [
        {k: v for k, v in unit("0", 2.0, 1.0).items() if k not in ("cost", "curve", "objectives")}
    ]
    (seconds,) = only(figures("cost", [run("rtn", 4, 90.0, blocks=old)])).axes
    assert drawn(seconds)["rtn"] == ([1.0], [90.0])
    assert len(only(figures("blocks", [run("rtn", 4, 90.0, blocks=old)])).axes) == 2


def test_methods_differ_without_colour():
    runs = [run(f"method{i}", b, 90.0) for i in range(20) for b in (3, 4)]
    (ax,) = only(figures("bits", runs)).axes
    lines = [line for line in ax.lines if line.get_label().startswith("method")]
    marks = {
        (line.get_marker(), str(line._dash_pattern), line.get_markerfacecolor() == "white")
        for line in lines
    }
    assert len(marks) == 20
    assert all(sum(to_rgb(line.get_color())) < 2.4 for line in lines), "dark enough for paper"


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_both_files_and_the_same_again(kind, tmp_path, capsys):
    for row in more_samples() if kind == "samples" else sweep():
        Store(tmp_path).write(row)
    written = []
    for out in (tmp_path / "first", tmp_path / "second"):
        assert main(["plot", kind, "--results-dir", str(tmp_path), "--out", str(out)]) == 0
        told = capsys.readouterr().out.split()
        assert sorted(told) == sorted(map(str, out.iterdir()))
        assert {path.suffix for path in out.iterdir()} == {".svg", ".png"}
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
        for path in out.glob("*.png"):
            assert imread(path)[..., :3].std() > 0.02, "not blank"
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [(["pie"], "plot pie: give one of bits, samples, blocks, curves, cost"),
     ([], "plot: give one of bits"),
     (["bits", "--where", "bits=4"], "plot bits: every run has bits=4; sweep bits=4,3,2"),
     (["samples"], "plot samples: every run has num_samples=32; sweep num_samples="),
     (["curves", "--where", "quant=rtn"], "plot curves: none of the 2 configurations has"),
     (["bits", "--model", "resnet19"],
      "none of the 6 records has model=resnet19; did you mean resnet18?"),
     (["bits", "--out", "RECORD"], "--out")],
)  # fmt: skip
def test_what_can_not_be_drawn_is_told_in_one_line(args, message, tmp_path, capsys):
    paths = [Store(tmp_path).write(row) for row in sweep()]
    args = [str(paths[0]) if arg == "RECORD" else arg for arg in args]
    assert main(["plot", *args, "--results-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["blocks", "cost"])
def test_runs_without_units(kind):
    with pytest.raises(ValueError, match=f"plot {kind}: none of the 1 configurations reports"):
        figures(kind, [record()])


def test_runs_that_have_all_failed():
    with pytest.raises(ValueError, match="nothing to draw: none of the 1 runs has finished"):
        figures("blocks", [record(status="failed")])


def test_without_matplotlib_one_line_names_the_extra(tmp_path, capsys, monkeypatch):
    Store(tmp_path).write(record())
    for name in [n for n in sys.modules if n.startswith("results.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", "bits", "--results-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "error: matplotlib is not installed; pip install -e '.[plots]'\n"
    )


def test_shifts_are_drawn_against_the_size_of_the_weight():
    weight = torch.tensor([[-3.0, 0.5, 1.0, 2.0]])
    codes = torch.tensor([[-6, 1, 2, 4]], dtype=torch.int16)  # round-to-nearest at a step of 0.5
    moved = codes + torch.tensor([[-2, 0, 0, 1]], dtype=torch.int16)
    step, none = torch.tensor([[0.5]]), torch.zeros(1, 1)
    layers = {
        name: (weight, QuantizedTensor(found, step, none, Grid(4, True, PerChannel())))
        for name, found in (("rtn", codes), ("flexround", moved))
    }
    still, far = shift(layers).axes
    assert set(still.lines[0].get_ydata()) == {0}
    points = zip(far.lines[0].get_xdata(), far.lines[0].get_ydata(), strict=True)
    for (x, y), (size, shifted) in zip(
        sorted(points), [(0.5, 0), (1, 0), (2, 1), (3, -2)], strict=True
    ):
        assert x == pytest.approx(size, abs=3 / 1000)
        assert y == shifted
    assert far.get_title("left") == "flexround\n50.0% moved, 25.0% by more than 1"
    (right,) = far.child_axes
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["1", "2", "1"]
    with pytest.raises(ValueError, match="no layer"):
        shift({})


def test_points_that_would_cover_each_other_are_drawn_once(tmp_path):
    weight = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    integers = RTN(weight, grid=Grid(4, True, PerChannel()), ranges=MinMax()).finalize(weight)
    figure = shift({"rtn": (weight, integers)})
    assert len(figure.axes[0].lines[0].get_xdata()) <= 1000
    for path in write({"shift": figure}, tmp_path):
        assert path.stat().st_size > 1000


@pytest.mark.parametrize(("name", "begins"), [("a.PDF", b"%PDF"), ("b.png", b"\x89PNG")])
def test_one_figure_goes_to_a_file_by_its_ending(tmp_path, name, begins):
    drawn = figures("bits", sweep())
    out = tmp_path / "new" / name
    written = []
    for _ in range(2):
        assert write(drawn, out) == [out]
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(begins)
    with pytest.raises(ValueError, match=r"there are 2 figures; give a folder"):
        write(drawn | {"more": drawn["bits"]}, out)
    (tmp_path / "of.svg").mkdir()
    assert len(write(drawn, tmp_path / "of.svg")) == 2, "a folder stays one"


def test_integers_are_no_records():
    with pytest.raises(ValueError, match="plot shift --run ID --layer NAME"):
        figures("shift", sweep())

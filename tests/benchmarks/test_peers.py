"""The side-by-side comparison with other programs: what is measured, evaluated, kept and told."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.peers import __main__, environment, runs
from benchmarks.peers.child import Job, plain_perplexity
from benchmarks.peers.comparisons import COMPARISONS, OURS, Comparison, Contender
from benchmarks.peers.environment import Environment, environment_at
from benchmarks.peers.evaluate import most_values
from benchmarks.peers.inputs import NETWORK, TOKENS, Setting
from benchmarks.peers.measure import measured
from benchmarks.peers.runs import Bench, Cut, Failed, Store
from benchmarks.peers.table import table
from experiment.config import composed
from tests.benchmarks.refusals import check_refused_in_one_line

MIB = 2**20
TINY = [
    "--model", "tiny_llama", "--samples", "4", "--tokens", "32", "--window", "64", "--windows", "4",
    "--group-size", "16", "--threads", "1", "--repetitions", "1", "--rows", "rtn-w3",
]  # fmt: skip


def test_seconds_of_a_step_are_its_own():
    asleep = measured(lambda: time.sleep(0.3))
    assert asleep["wall"] >= 0.3
    assert asleep["cpu"] < 0.15

    def busy() -> None:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    assert 0.29 < measured(busy)["cpu"] < 0.6


def test_seconds_of_children_count():
    program = "import time\nwhile time.process_time() < 0.5: pass"
    found = measured(lambda: os.spawnv(os.P_WAIT, sys.executable, ["python", "-c", program]))
    assert found["cpu"] >= 0.49


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can")
def test_the_peak_of_a_step_is_its_own_even_after_a_larger_one():
    large = measured(lambda: torch.ones(400 * MIB // 4))
    small = measured(lambda: torch.ones(100 * MIB // 4))
    assert 399 < large["grown"] < 450
    assert 99 < small["grown"] < 150
    assert small["peak"] < large["peak"] - 200


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can")
def test_garbage_of_before_that_goes_during_a_step_hides_none_of_its_growth():
    circle: list[object] = [torch.ones(200 * MIB // 4)]
    circle.append(circle)
    del circle
    assert 99 < measured(lambda: (gc.collect(), torch.ones(100 * MIB // 4)))["grown"] < 150


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can")
def test_freed_memory_that_the_allocator_keeps_hides_no_growth():
    torch.ones(30 * MIB // 4)  # the first of its size that is freed: glibc keeps the later ones
    freed = [torch.ones(20 * MIB // 4) for _ in range(20)]
    above = torch.ones(MIB // 4)  # so the heap can't shrink from its end
    del freed
    assert 99 < measured(lambda: torch.ones(100 * MIB // 4))["grown"] < 150
    assert len(above)


def test_values_of_a_group_are_counted():
    torch.manual_seed(0)
    scale = torch.rand(6, 4, 1) + 0.1
    weight = (torch.randint(0, 8, (6, 4, 64)) * scale).reshape(6, 256)
    assert most_values(weight, 64) == 8  # three bits, every one of them used somewhere
    assert most_values(weight, 128) > 8  # on groups of another size it is not on a 3-bit grid
    weight[2, 70] += 1e-3
    assert most_values(weight, 64) in (8, 9)
    assert most_values(torch.zeros(2, 64), 64) == 1


def test_a_network_that_knows_nothing_has_the_vocabulary_for_its_perplexity(tmp_path: Path):
    save_file({"windows": torch.randint(0, 50, (3, 9))}, tmp_path / "tokens")
    job = SimpleNamespace(
        load=lambda: lambda input_ids: SimpleNamespace(logits=torch.zeros(*input_ids.shape, 50)),
        tokens=str(tmp_path / "tokens"),
    )
    assert plain_perplexity(job) == pytest.approx(50, rel=1e-5)


@pytest.mark.parametrize("comparison", COMPARISONS.values(), ids=COMPARISONS)
def test_overrides_of_ours_compose_and_are_the_shared_setting(comparison: Comparison):
    setting = Setting("smollm2_135m", None, "/a b's", 16, 256, 20, 1024, 64, 2, 1)
    mine = [contender for contender in comparison.contenders if contender.program == OURS]
    assert mine
    assert comparison.contenders[0].program != OURS  # what the others are divided by
    for contender in mine:
        cfg = composed(
            [*setting.compose(Path("/net")), f"bits={comparison.bits}",
             *contender.settings["overrides"]]
        )  # fmt: skip
        assert (cfg.bits, cfg.symmetric) == (comparison.bits, False)
        assert cfg.granularity.group_size == 64
        assert (cfg.recon.batch_size, cfg.num_samples, cfg.task.seq_len) == (2, 16, 256)
        assert (cfg.protocol.name, cfg.protocol.window, cfg.protocol.max_windows) == (
            "file", 1024, 20,
        )  # fmt: skip
        assert cfg.task.corpus.local == "/a b's"
        assert cfg.model.source == "/net"


class Scripted(Bench):
    """A bench whose processes are scripted: what is found by the module, or an error."""

    calls: list[str]

    def _process(self, program: str, module: str, job: dict) -> dict:
        self.calls.append(f"{module} {program} {sorted(job.get('settings', {}))}")
        if module == "evaluate":
            return {"perplexity": 20.0, "values": 8}
        if not job["program"]:
            return {"perplexity": 20.0}
        if program == "torch_ao":
            raise Failed("exit status 1: ValueError: no luck")
        Path(job["weights"]).write_bytes(program.encode())
        seconds = 4.0 if program == "auto_round" else 2.0
        return {"wall": seconds, "cpu": seconds, "peak": 100.0, "grown": 10.0}


def scripted(tmp_path: Path, versions: dict[str, str | None]) -> Scripted:
    setting = Setting("tiny_llama", None, None, 4, 32, 4, 64, 16, 2, 1)
    own = Environment(tmp_path / "env", versions)
    store = Store(tmp_path, runs.facts_of(setting, own, "digest"))
    bench = Scripted(setting, own, tmp_path, store, float("inf"), lambda line: None)
    bench.calls = []
    return bench


ALL_THERE = {"auto-round": "0.16.1", "llmcompressor": "0.14.0.1", "torchao": "0.18.0"}


def test_turns_alternate_and_what_has_ended_is_not_repeated(tmp_path: Path):
    bench = scripted(tmp_path, ALL_THERE)
    bench.run([COMPARISONS["signround-10"]], 2)
    programs = [c.split()[1] for c in bench.calls if c.startswith("child")]
    assert programs == ["auto_round", "ours", "ours", "ours", "ours", "auto_round"]
    assert len([c for c in bench.calls if c.startswith("evaluate")]) == 2  # equal weights once

    again = scripted(tmp_path, ALL_THERE)
    again.run([COMPARISONS["signround-10"]], 2)
    assert again.calls == []
    again.run([COMPARISONS["signround-10"]], 3)
    assert len([c for c in again.calls if c.startswith("child")]) == 3


def test_a_run_that_failed_is_tried_again(tmp_path: Path):
    for _ in range(2):
        bench = scripted(tmp_path, {"torchao": "0.18.0"})
        bench.run([COMPARISONS["rtn-w4"]], 1)
        assert [c for c in bench.calls if "torch_ao" in c]
    assert len([row for row in bench.store.rows if "error" in row]) == 1


def test_rows_of_other_versions_are_not_taken_for_these(tmp_path: Path):
    scripted(tmp_path, ALL_THERE).run([COMPARISONS["rtn-w4"]], 1)
    assert scripted(tmp_path, ALL_THERE).store.rows
    assert not scripted(tmp_path, {**ALL_THERE, "auto-round": "0.17"}).store.rows


def test_a_file_of_another_kind_is_named(tmp_path: Path):
    path = scripted(tmp_path, ALL_THERE).store.path
    for text in ("", "[]", "{", '{"rows": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"\.json can't be used .*; move it"):
            scripted(tmp_path, ALL_THERE)


def test_the_table_has_ratios_errors_and_what_is_missing(tmp_path: Path):
    bench = scripted(tmp_path, {**ALL_THERE, "llmcompressor": None})
    bench.check_evaluators()
    bench.run([COMPARISONS["rtn-w3"]], 2)
    lines = list(table([COMPARISONS["rtn-w3"]], bench.store, bench.environment))
    cells = {line.split("|")[2].strip(): line for line in lines if line.startswith("| W3")}
    assert "| 20.000 | 4.0 (4.0 to 4.0) |  | 4.0 (4.0 to 4.0) |" in cells["auto-round, RTN 0.16.1"]
    assert (
        "| 2.0 (2.0 to 2.0) | 0.50 | 2.0 (2.0 to 2.0) | 0.50 | 100 | 10 | 2 |"
        in cells["RTN, min-max"]
    )
    assert "not installed: python -m benchmarks.peers --install" in cells["llm-compressor, RTN"]
    assert "exit status 1: ValueError: no luck" in cells["torchao, RTN 0.18.0"]
    assert len({line.count(" |") for line in cells.values()}) == 1
    assert any("20.0000 by our evaluator, 20.0000 by transformers" in line for line in lines)


def test_a_weight_off_the_grid_is_told(tmp_path: Path):
    bench = scripted(tmp_path, ALL_THERE)
    comparison = Comparison("x", "W2", 2, [Contender("peer", "auto_round")], "nothing")
    bench.run([comparison], 1)
    (line,) = [t for t in table([comparison], bench.store, bench.environment) if "W2" in t]
    assert "(up to 8 values a group)" in line


def test_evaluators_that_differ_are_refused(tmp_path: Path):
    bench = scripted(tmp_path, ALL_THERE)
    bench.store.reference = {"ours": 20.0, "transformers": 20.01}
    with pytest.raises(Failed, match=r"20\.0000 by ours, 20\.0100 by transformers"):
        bench.check_evaluators()


def test_no_process_begins_when_the_time_is_over(tmp_path: Path):
    bench = scripted(tmp_path, ALL_THERE)
    bench.deadline = time.monotonic() - 1
    with pytest.raises(Cut):
        Bench._process(bench, OURS, "child", bench._job("", 0, {}))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rows", "rtn-w4", "awq"], "--rows awq: give some of signround-25, signround-10"),
        (["--minutes", "0"], "--minutes 0: give a number above 0"),
        (["--minutes", "nan"], "--minutes nan: give a number above 0"),
        (["--threads", "0"], "--threads 0: give at least 1"),
        (["--group-size", "-1"], "--group-size -1: give at least 1"),
        (["--samples", "1"], "--samples 1: give at least --batch-size"),
        (["--peers"], "unrecognized arguments: --peers"),
    ],
)
def test_bad_options_are_refused_in_one_line(words, line, capsys: pytest.CaptureFixture[str]):
    check_refused_in_one_line(__main__.parsed, words, line, capsys)


def test_folders_that_are_no_environment_are_refused(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    for option, end in (("--environment", "has no bin/python"), ("--install", "an empty folder")):
        out = ["--out", str(tmp_path / "out")]
        assert __main__.main([option, str(tmp_path), *out]) == 2
        err = capsys.readouterr().err
        assert f"{option} {tmp_path}" in err
        assert end in err
        assert len(err.splitlines()) == 1


def test_an_environment_that_is_not_there_has_no_peer(tmp_path: Path):
    found = environment_at(tmp_path / "none")
    for program in environment.DISTRIBUTIONS:
        assert f"--install {tmp_path / 'none'}" in str(found.missing(program))
    assert found.missing(OURS) is None


def with_peer(folder: Path) -> Path:
    """Return an environment whose auto-round rounds to nearest, written from the formula."""
    packages, binary = folder / "packages", folder / "bin" / "python"
    (packages / "auto_round-9.9.dist-info").mkdir(parents=True)
    (packages / "auto_round-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: auto-round\nVersion: 9.9\n"
    )
    (packages / "auto_round.py").write_text(
        "import torch\n"
        "class AutoRound:\n"
        "    def __init__(self, network, bits, group_size, dataset, **rest):\n"
        "        assert rest['sym'] is False and len(dataset) == 4\n"
        "        self.network, self.top, self.size = network, 2**bits - 1, group_size\n"
        "    @torch.no_grad()\n"
        "    def quantize(self):\n"
        "        for name, layer in self.network.named_modules():\n"
        "            if isinstance(layer, torch.nn.Linear) and name != 'lm_head':\n"
        "                w = layer.weight.reshape(-1, self.size)\n"
        "                low = w.amin(1, keepdim=True).clamp(max=0)\n"
        "                s = (w.amax(1, keepdim=True).clamp(min=0) - low) / self.top\n"
        "                z = torch.round(-low / s)\n"
        "                q = torch.clamp(torch.round(w / s) + z, 0, self.top)\n"
        "                layer.weight.copy_(((q - z) * s).reshape(layer.weight.shape))\n"
    )
    binary.parent.mkdir()
    binary.write_text(
        f'#!/bin/sh\nPYTHONPATH="{packages}:$PYTHONPATH" exec "{sys.executable}" "$@"\n'
    )
    binary.chmod(0o755)
    return folder


@pytest.mark.slow
def test_a_peer_with_the_same_formula_gets_the_same_perplexity(tmp_path: Path, capsys):
    words = [*TINY, "--environment", str(with_peer(tmp_path / "env")), "--out"]
    assert __main__.main([*words, str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    (path,) = (tmp_path / "out").glob("tiny_llama-*.json")
    kept = json.loads(path.read_text())
    rows = {row["contender"]: row for row in kept["rows"]}
    peer, mine = rows["auto-round, RTN"], rows["RTN, min-max"]
    assert peer["perplexity"] == pytest.approx(mine["perplexity"], rel=1e-6)
    assert peer["values"] <= 8
    assert mine["values"] <= 8
    assert "auto-round, RTN 9.9" in text
    assert "| torchao, RTN | not installed: " in text

    # The numbers are those of the network that was exported, by the Hugging Face library alone.
    folder = tmp_path / "out" / "inputs"
    job = Job("", str(folder / NETWORK), str(folder / TOKENS), 3, 16, 2, 1, {}, [], "", "")
    reference = kept["reference"]
    assert reference["transformers"] == pytest.approx(plain_perplexity(job), rel=1e-5)
    assert reference["ours"] == pytest.approx(reference["transformers"], rel=1e-5)
    assert load_file(folder / TOKENS)["calibration"].shape == (4, 32)

    before = path.read_bytes()
    assert __main__.main([*words, str(tmp_path / "out")]) == 0
    assert path.read_bytes() == before

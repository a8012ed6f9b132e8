"""`save=true` and `python artifact.py`: what a user types."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import experiment.artifacts.save
from experiment.artifacts import rebuild
from experiment.artifacts.provenance import provenance_of
from flexround.artifact.file_format import _digest
from flexround.artifact.header import DIGEST, FILE, KEY
from flexround.utils.atomic_files import written_folder
from results.records.record import Record
from results.records.store import Store
from tests.conftest import TINY

VISION = (*TINY, "quant=rtn", "bits=3", "num_samples=64", "progress=false")
LLAMA = ("model=tiny_llama", "quant=rtn", "bits=3", "num_samples=8", "progress=false")


def artifact_in(results_dir):
    """Return the only record, and where its artifact lies."""
    store = Store(results_dir)
    (record,) = store.load()
    return record, store.artifact(record.run_id)


def saved(results_of, *args):
    return artifact_in(results_of(*args, "save=true"))


CASES = {
    "vision_static": (
        *TINY, "quant=flexround", "bits=3", "num_samples=64", "recon.iters=4", "recon=qdrop",
        "activation=static_per_tensor", "act_bits=4",
    ),
    "llama": LLAMA,
    "llama_tokens": (*LLAMA, "activation=dynamic_per_token", "act_bits=4", "kv_bits=4"),
    "gpt2_static": ("model=tiny_gpt2", *LLAMA[1:], "activation=static_per_tensor", "act_bits=5"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_eval_reaches_the_records_own_metric(tool, results_of, cache_dir, tmp_path, case):
    record, folder = saved(results_of, *CASES[case])
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    # Without the cache: all that there is to the network lies in the folder.
    status, out, err = tool("eval", elsewhere, f"cache_dir={tmp_path}/empty", "device=cpu")
    assert status == 0, err
    assert f"{record.metric} {record.value}" in out
    assert record.run_id in out
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("leave", ['["*.k_proj"]', '["*.layers.[!1].mlp.*","mlp.?p_proj"]'])
def test_layers_left_by_a_pattern_are_left_in_the_artifact(tool, results_of, tmp_path, leave):
    record, folder = saved(results_of, *LLAMA, f"model.leave={leave}")
    assert record.left
    status, out, err = tool("eval", folder)
    assert (status, f"perplexity {record.value}" in out) == (0, True), err
    pytest.importorskip("compressed_tensors", reason="the extra export is not installed")
    out = tmp_path / "out"
    status, _, err = tool("export", folder, "--to", "compressed-tensors", "--out", out)
    assert (status, err) == (0, "")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert set(config["ignore"]) >= {name.removesuffix(".weight") for name in record.left}


def test_what_an_artifact_is_made_of_is_refused_on_its_command_line(tool, results_of, tmp_path):
    _, folder = saved(results_of, *LLAMA)
    commands = (["eval"], ["export", "--to", "gptq", "--out", tmp_path / "out"])
    for (name, *more), given in itertools.product(commands, ("bits=4", "quant=gptq")):
        status, out, err = tool(name, folder, given, *more)
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert f"error: {given} would change nothing" in err


@pytest.mark.slow
def test_so_does_resnet18(tool, results_of):
    record, folder = saved(
        results_of, "task=digits", "quant=rtn", "bits=2", "num_samples=64",
        "activation=static_per_tensor", "act_bits=4",
    )  # fmt: skip
    assert record.model == "resnet18"
    status, out, err = tool("eval", folder)
    assert (status, f"top1 {record.value}" in out) == (0, True), err


@pytest.mark.slow
def test_an_equalised_network_comes_back_with_its_biases(tool, results_of):
    record, folder = saved(
        results_of, "model=mobilenet_v2", *VISION[2:], "model.equalize=true",
        "model.absorb_biases=true",
    )  # fmt: skip
    status, out, err = tool("eval", folder)
    assert (status, f"top1 {record.value}" in out) == (0, True), err


def test_export_writes_what_onnxruntime_runs(tool, results_of, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    _, folder = saved(results_of, *VISION)
    out = tmp_path / "onnx"
    status, printed, err = tool("export", folder, "--to", "onnx", "--out", out)
    assert (status, printed.strip()) == (0, str(out)), err
    images = rebuild.rebuild(folder).task.example()
    with torch.no_grad():
        expected = rebuild.rebuild(folder).adapter.forward(images)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    status, _, err = tool("export", folder, "--to", "onnx", "--out", out)
    assert (status, "exists" in err) == (1, True)


def test_an_encoders_export_takes_masks_and_segments(tool, results_of, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    _, folder = saved(
        results_of, "model=tiny_bert", "task.max_len=32", "quant=rtn", "bits=8", "num_samples=8",
        "progress=false",
    )  # fmt: skip
    out = tmp_path / "onnx"
    status, printed, err = tool("export", folder, "--to", "onnx", "--out", out)
    assert (status, printed.strip()) == (0, str(out)), err
    rebuilt = rebuild.rebuild(folder)
    ids = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.tensor([12, 7, 3])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * (ids % 2)}
    with torch.no_grad():
        expected = rebuilt.adapter.forward(batch)
        unmasked = rebuilt.adapter.forward({"input_ids": ids})
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {name: values.numpy() for name, values in batch.items()})
    near = (expected - unmasked).abs().max().item() / 10
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=near, rtol=0)


GRIDS = {
    "granularity": "class Own(flexround.grid.PerChannel):\n    pass\n",
    "grid": "class Own(flexround.levels.FP4):\n    name = 'own'\n",
}


@pytest.mark.parametrize("group", GRIDS)
def test_a_grid_that_no_file_holds_is_refused_before_the_work(
    cli, results_dir, cache_dir, tmp_path, monkeypatch, group
):
    package = tmp_path / f"own_{group}"
    package.mkdir()
    head = "import flexround.grid\nimport flexround.levels\n\n\n"
    (package / "__init__.py").write_text(head + GRIDS[group])
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "own.yaml").write_text(
        f"# @package _global_\n{group}: {{_target_: {package.name}.Own}}\nidle: {{{group}: []}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    outcome = cli(
        *LLAMA[:2], "bits=4", "symmetric=true", *LLAMA[3:], "save=true", f"{group}=own",
        f"hydra.searchpath=[file://{tmp_path}/conf]", f"plugins=[{package.name}]",
        f"cache_dir={tmp_path}/cache",
    )  # fmt: skip
    assert outcome.status == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith(f"error: {group}=")
    assert line.endswith("give save=false")
    assert not (tmp_path / "cache").exists(), "not even the network is made"
    assert Store(results_dir).load() == []


def test_another_number_is_an_error(tool, results_of):
    record, folder = saved(results_of, *VISION)
    held = load_file(folder / FILE)
    with open(folder / FILE, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    header = json.loads(metadata[KEY])
    header["facts"]["record"]["value"] = record.value + 1
    text = json.dumps(header)
    save_file(held, folder / FILE, {KEY: text, DIGEST: _digest(text, held)})
    status, out, err = tool("eval", folder)
    assert (status, out) == (1, "")
    assert f"top1 is {record.value!r}, its record {record.run_id} has {record.value + 1!r}" in err
    assert len(err.splitlines()) == 1


def test_inspect_lists_layers_bits_and_bytes(tool, results_of):
    record, folder = saved(results_of, *VISION, "granularity=per_channel")
    status, out, _ = tool("inspect", folder)
    assert status == 0
    held = load_file(folder / FILE)
    names = [name.removesuffix(".codes") for name in held if name.endswith(".codes")]
    rows = {line.split("|")[1].strip(): line for line in out.splitlines() if line.startswith("|")}
    for name in names:
        own = held[f"{name}.codes"].nbytes + held[f"{name}.scale"].nbytes
        assert f"| {own} " in rows[name]
        assert "per_channel" in rows[name]
    quantized = [b for b in held if b.endswith((".codes", ".scale"))]
    assert f"in {sum(held[n].nbytes for n in quantized)} bytes" in out
    bits = {n: bits for b in record.blocks for n, bits in b["layers"].items()}
    assert sorted(bits) == sorted(names)
    assert all(f"| {bits[name]} " in rows[name] for name in names)


def test_the_card_says_what_how_and_again(cli, results_of):
    record, folder = saved(results_of, *VISION)
    text = (folder / "README.md").read_text()
    assert f"{record.value:.4f}" in text
    assert f"{record.fp_value:.4f}" in text
    assert record.run_id in text
    (command,) = [line for line in text.splitlines() if line.startswith("python run.py")]
    again = cli(*command.split()[2:])
    assert f"already recorded as {record.run_id}" in again.err
    assert "no artifact" not in again.err


def test_the_card_sets_the_papers_number_beside_ours():
    """Table 2: ResNet-18 at 4 bit, B + FlexRound, 70.28; the network in full precision 71.00."""
    from experiment.artifacts.model_card import _numbers

    settings = {
        "num_samples": 1024, "activation": None, "checkpoint": "brecq.pth",
        "model": {"equalize": False}, "recon": {"act_steps": "after"}, "act_bits": 8,
        "symmetric": True, "granularity": {"_target_": "PerTensor"},
    }  # fmt: skip
    record = Record(
        "0" * 16, "ok", "resnet18", "imagenet", 1, "flexround", 4, 0, "top1", True, 70.0, 71.0,
        settings, {"top1": 70.0}, {"top1": 71.0},
    )  # fmt: skip
    (row,) = [line for line in _numbers(record).splitlines() if line.startswith("| top1")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2:4] == ["70.0000", "71.0000"]
    assert "70.28" in cells[4]
    assert "71.00" in cells[5]


def test_a_run_recorded_without_its_artifact_says_how_to_get_one(cli, results_dir):
    assert cli(*VISION).status == 0
    (path,) = results_dir.glob("*.json")
    before = path.read_bytes()
    asked = cli(*VISION, "save=true")
    assert asked.status == 0
    assert "it has no artifact of its own; rerun=true makes one" in asked.err
    assert path.read_bytes() == before
    assert cli(*VISION, "save=true", "rerun=true").status == 0
    record, folder = artifact_in(results_dir)
    assert provenance_of(folder).started == record.started
    # A later attempt's record is not that of the artifact that lies there.
    assert cli(*VISION, "rerun=true").status == 0
    assert "it has no artifact" in cli(*VISION, "save=true").err


def test_what_is_not_ours_is_not_overwritten(cli, results_of):
    _, folder = saved(results_of, *VISION)
    assert cli(*VISION, "seed=1", "save=true").status == 0
    (other,) = {*folder.parent.iterdir()} - {folder}
    shutil.rmtree(folder)
    other.rename(folder)
    refused(cli, folder, f"which holds the artifact of run {other.name}")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    refused(cli, folder, "that exists")
    shutil.rmtree(folder)
    folder.write_text("thesis")
    refused(cli, folder, "that exists")
    assert folder.read_text() == "thesis"


def refused(cli, folder, words):
    outcome = cli(*VISION, "save=true", "rerun=true")
    assert outcome.status == 1
    assert outcome.err.strip().startswith(f"error: save=true writes to {folder}")
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_an_artifact_that_can_not_be_written_leaves_no_half(cli, results_dir, monkeypatch):
    def full(artifact, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment.artifacts.save, "write", full)
    outcome = cli(*VISION, "save=true")
    assert outcome.status == 1
    assert "No space left on device" in outcome.err.splitlines()[-1]
    assert Store(results_dir).load() == []  # a full disk is no failure of the run
    assert list((results_dir / "artifacts").iterdir()) == []
    monkeypatch.undo()
    assert cli(*VISION, "save=true").status == 0
    record, folder = artifact_in(results_dir)
    assert record.status == "ok"
    assert (folder / FILE).is_file()


def test_the_artifact_is_there_before_its_record(cli, results_dir, monkeypatch):
    def killed(self, record, outcomes=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "write", killed)
    assert cli(*VISION, "save=true").status == 130
    monkeypatch.undo()
    (folder,) = (results_dir / "artifacts").iterdir()
    assert Store(results_dir).load() == []
    assert cli(*VISION, "save=true").status == 0
    record, again = artifact_in(results_dir)
    assert again == folder
    assert provenance_of(folder).started == record.started


def half_written(path):
    with written_folder(path) as part:
        (part / "a").write_text("half")
        raise RuntimeError


def test_a_folder_is_whole_or_as_before(tmp_path):
    path = tmp_path / "it"
    for text in ("old", "new"):
        with written_folder(path) as part:
            (part / "a").write_text(text)
        assert (path / "a").read_text() == text
    with pytest.raises(RuntimeError):
        half_written(path)
    assert (path / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_bad_paths_are_one_line(tool, tmp_path, command):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    (tmp_path / FILE).write_bytes(b"\x00" * 40)
    for path, words in {
        tmp_path / "nowhere": "no artifact",
        tmp_path / "model.pt": "a pickle runs code",
        tmp_path: "damaged or truncated",
    }.items():
        status, out, err = tool(command, path)
        assert (status, out) == (1, "")
        assert words in err
        assert len(err.splitlines()) == 1


def test_wandb_takes_the_artifact_along(results_of, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_DATA_DIR", "restored afterwards")
    monkeypatch.delenv("WANDB_DATA_DIR")
    record, folder = saved(results_of, *VISION, "logger=wandb", f"logger.dir={tmp_path}")
    wandb.teardown()
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    for word in (f"quantized-{record.run_id}", FILE, "README.md"):
        assert word.encode() in content
    # Not in the user's home, which a large model would fill.
    staged = [p for p in (tmp_path / "artifacts" / "staging").rglob("*") if p.is_file()]
    sizes = {p.stat().st_size for p in staged}
    assert (folder / FILE).stat().st_size in sizes


def test_a_network_of_any_source_is_that_of_its_own_artifact(cli, tool, results_dir, cache_dir):
    """What model.source names is not looked for: the artifact says no path, and has the network."""
    assert cli(*LLAMA).status == 0  # which makes the network
    (network,) = [p for p in (cache_dir / "checkpoints").glob("tiny-llama-*") if p.is_dir()]
    task = ("task=python_docs", "quant=rtn", "bits=4", "num_samples=8", "save=true")
    made = cli("model=hf", f"model.source={network}", *task)
    assert made.status == 0, made.err
    (folder,) = (results_dir / "artifacts").iterdir()
    assert str(network.parent) not in (folder / FILE).read_bytes().decode(errors="replace")
    status, out, err = tool("eval", folder)
    assert status == 0, err
    assert folder.name in out

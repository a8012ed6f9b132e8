"""Forged records, claims, outcomes, cache entries, digests, checkpoints: a value or one line.

Every door either does its work or says in one line what is wrong; a traceback is any other
exception, which these tests let through.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiment.content import Contents
from experiment.full_precision import _is_metrics
from experiment.shared_cache import Cache
from experiment.shared_tensors import is_kept
from experiment.sweeps.jobs import facts_in
from flexround.reconstruction.checkpoints import FileCheckpoints
from flexround.reconstruction.report import BlockReport
from flexround.reconstruction.snapshots import Snapshot
from flexround.utils.file_errors import StorageError
from results.__main__ import main
from results.records.claim import Claim, me
from results.records.outcomes import pack, unpack
from results.records.store import Store
from tests.forged import forged
from tests.results.records.test_store import record

COUNTS = [pytest.param(2), pytest.param(1000, marks=pytest.mark.slow)]
BLOCK = asdict(BlockReport("b.0", {"b.0.w": 4}, 2.0, 1.0, 0.5, 0.1, curve=[[0.0, 2.0]]))


def plain(run_id, quant, seed, value):
    settings = {"bits": 4, "seed": seed, "recon": {"iters": 5}, "act_bits": 8, "quant": {}}
    return replace(
        record(run_id, value, settings=settings), quant=quant, seed=seed, fp_value=98.0,
        fp_metrics={"top1": 98.0}, blocks=[BLOCK], overrides=["quant=" + quant],
        device="cpu", versions={"torch": "2"}, started="2026-11-27T07:00:00+00:00",
    )  # fmt: skip


SOUND = [
    plain("a", "flexround", 0, 97.0), plain("b", "rtn", 0, 96.0), plain("c", "rtn", 1, 95.0),
    plain("d", "flexround", 1, 97.5),
]  # fmt: skip
RIGHT = {"top1": np.arange(50) % 3 > 0}


def doors(folder: Path, page: Path) -> list[list[str]]:
    own = ["--results-dir", str(folder)]
    return [
        own, [*own, "--format", "latex"], [*own, "--by", "recon.iters"],
        ["html", *own, "--out", str(page)], ["compare", "flexround", "rtn", *own],
        ["ablation", "quant", *own], [*own, "--where", "recon.iters=5"], ["table02", *own],
    ]  # fmt: skip


def refusal(look, *args):
    """Return the line with which look refuses args, None where it takes them."""
    try:
        look(*args)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("count", COUNTS)
def test_a_forged_record_is_a_row_or_a_line(tmp_path, capsys, count, caplog):
    caplog.set_level("CRITICAL")
    store = Store(tmp_path / "results")
    store.root.mkdir()
    for sound in SOUND:
        store.write(sound, RIGHT)
    data = store.path("a").read_bytes()
    for seed in range(count):
        store.path("a").write_bytes(forged(data, seed))
        for door in doors(store.root, tmp_path / "page.html"):
            status = main(door)
            out, err = capsys.readouterr()
            assert status in (0, 1), (seed, door)
            if status:
                assert [err[:7], err.count("\n")] == ["error: ", 1], (seed, door, err)
            assert "\x1b" not in out + err, (seed, door)
        for look in (store.get_or_quarantine, store.peek, store.replaced, store.names):
            line = refusal(look, "a")
            assert line is None or line.isprintable(), (seed, line)


@pytest.mark.parametrize("count", COUNTS)
def test_forged_outcomes_are_read_or_refused(count):
    data = pack({"top1": np.arange(99) % 3 > 0, "loss": np.linspace(0, 1, 99)}, "1")
    for seed in range(count):
        other = forged(data, seed, is_json=False)
        line = refusal(unpack, other, "1")
        assert line is None or line.isprintable(), (seed, line)
        if line is None:
            assert all(values.shape == (99,) for values in unpack(other, "1").values())


@pytest.mark.parametrize("count", COUNTS)
def test_a_forged_claim_is_held_or_set_aside(tmp_path, count, caplog):
    caplog.set_level("CRITICAL")
    data = json.dumps(asdict(replace(me(), pid=1, started="1", token="dead"))).encode()
    for seed in range(count):
        path = tmp_path / f"{seed}.json"
        path.write_bytes(forged(data, seed))
        claim = Claim(path, beat=0.01)
        claim.seems_alive()
        held = claim.take()
        assert held is None or str(held).isprintable(), seed
        claim.release()


@pytest.mark.parametrize("count", COUNTS)
def test_a_forged_cache_entry_is_made_again(tmp_path, count, caplog):
    caplog.set_level("CRITICAL")
    from safetensors.torch import save

    kinds = {"metrics": (json.dumps({"top1": 1.5}).encode(), _is_metrics),
             "outputs": (save({"outputs": torch.ones(3)}),
                         lambda data: is_kept(data, {"outputs"}))}  # fmt: skip
    for seed in range(count):
        rng = random.Random(seed)
        name, (data, sound) = rng.choice(list(kinds.items()))
        cache = Cache(tmp_path / str(seed), 1)
        path = tmp_path / str(seed) / "k.entry"
        path.parent.mkdir()
        other = forged(data, seed, name == "metrics")
        whole = rng.random() < 0.7  # else the digest does not match either
        path.write_bytes((hashlib.sha256(other).digest() if whole else bytes(32)) + other)
        found = cache.get("k", lambda data=data: data, sound)
        assert found == data or (whole and found == other and sound(found))


@pytest.mark.parametrize("count", COUNTS)
def test_a_forged_digest_costs_a_second_look(tmp_path, count):
    file, images = tmp_path / "weights.pt", tmp_path / "images"
    file.write_bytes(b"weights")
    for part in ("val/cat", "train/cat"):
        (images / part).mkdir(parents=True)
        (images / part / "1.png").write_bytes(b"x")
    kept = tmp_path / "kept"
    contents = Contents(kept)
    expected = contents.file(file), contents.images(images)
    kept.mkdir(exist_ok=True)
    stat = file.stat()
    stamp = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    sound = {
        file: {"stamp": stamp, "digest": expected[0]},
        images: {"val/cat": {"stamp": [1, 2, 3, 4], "count": 1}},
    }
    for seed in range(count):
        for path, entry in sound.items():
            name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
            (kept / f"{name}.json").write_bytes(forged(json.dumps(entry).encode(), seed))
        found = contents.file(file), contents.images(images)
        assert found[1] == expected[1], seed
        assert found[0].startswith("sha256:"), seed


@pytest.mark.parametrize("count", COUNTS)
def test_forged_checkpoints_are_used_or_set_aside(tmp_path, count, caplog):
    caplog.set_level("CRITICAL")
    report = BlockReport("0", {"w": 4}, 1.0, 0.5, 0.1, 0.1, curve=[[0.0, 1.0]])
    for seed in range(count):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        kept = FileCheckpoints(folder, {"it": 1})
        for unit in "ab":
            kept.save(unit, Snapshot({"w.codes": torch.ones(2)}, report))
        path = sorted(folder.iterdir())[rng.randrange(3)]
        data = path.read_bytes()
        if path.suffix == ".json":
            path.write_bytes(forged(data, seed))
        else:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            facts = forged(header["__metadata__"]["facts"].encode(), seed)
            header["__metadata__"]["facts"] = facts.decode(errors="replace")
            text = json.dumps(header).encode()
            other = rng.choice(
                [len(text).to_bytes(8, "little") + text + data[8 + length :],
                 forged(data, seed, is_json=False)]
            )  # fmt: skip
            path.write_bytes(other)
            if rng.random() < 0.8:  # under the digest that it has
                digest = hashlib.sha256(other).hexdigest()[:16]
                path.rename(folder / f"{path.name[:4]}-{digest}.safetensors")
        again = FileCheckpoints(folder, {"it": 1})
        for unit in "ab":
            found = again.find(unit)
            assert found is None or isinstance(found.report, BlockReport)


def test_a_checkpoint_of_another_unit_is_one_line(tmp_path):
    from tests.flexround.reconstruction import test_checkpoints as runs

    files = runs.kept(tmp_path)
    from flexround.reconstruction.snapshots import from_bytes, to_bytes

    unit, held = from_bytes(files[1].read_bytes(), "")
    tensors = {name: tensor[:1] if tensor.ndim else tensor for name, tensor in held.tensors.items()}
    data = to_bytes(unit, Snapshot(tensors, held.report))
    files[1].unlink()
    path = tmp_path / f"0001-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    path.write_bytes(data)
    with pytest.raises(StorageError, match=f"{path} does not fit the unit"):
        runs.quantize("flexround", FileCheckpoints(tmp_path, runs.KEY))


@pytest.mark.parametrize("count", COUNTS)
def test_what_a_forged_job_has_left_is_facts_or_nothing(tmp_path, count):
    data = json.dumps({"run_id": "a", "error": "it failed"}).encode()
    for seed in range(count):
        (tmp_path / "outcome.json").write_bytes(forged(data, seed))
        facts = facts_in(tmp_path)
        assert all(isinstance(v, str) for v in facts.values())

"""Networks of first use: kept where they can be, used where they can't."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from tasks.language import pretrained
from tasks.vision import checkpoints
from tasks.vision.digits import Digits
from tests.full_disk import FullDisk, leftovers


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Give a task of digits whose training is one multiplication."""
    task = Digits(1, str(tmp_path / "cache"), 32, 64)
    monkeypatch.setattr(task, "build", lambda _: torch.nn.Linear(2, 1))
    fitted = []

    def fit(model):
        fitted.append(1)
        network = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(network.weight, 3.0)
        return network

    monkeypatch.setattr(task, "_fit", fit)
    task.fitted = fitted
    return task


MODEL = SimpleNamespace(name="tiny", library="timm")


def test_a_read_only_cache_gives_the_network_that_is_in_it(digits, tmp_path, monkeypatch):
    digits.load(MODEL, None)
    before = sorted(tmp_path.rglob("*"))
    with FullDisk(tmp_path, 0).mounted():
        network = digits.load(MODEL, None)
    assert network.weight.tolist() == [[3.0, 3.0]]
    assert len(digits.fitted) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_network_that_can_not_be_kept_is_used_and_told(digits, tmp_path, caplog):
    passes = 0
    while True:
        caplog.clear()
        disk = FullDisk(tmp_path, passes)
        with disk.mounted():
            assert digits.load(MODEL, None).weight.tolist() == [[3.0, 3.0]]
        assert leftovers(tmp_path) == []
        if disk.seen <= passes:
            break
        assert caplog.text.count("is not kept") == 1
        for path in tmp_path.rglob("*.safetensors"):  # whole, though its folder was not synced
            checkpoints.check_digest(path)
            path.unlink()
        passes += 1
    assert passes >= 5


def test_a_network_that_can_not_be_read_is_left(digits, tmp_path, monkeypatch, caplog):
    digits.load(MODEL, None)
    (path,) = tmp_path.rglob("*.safetensors")
    before = path.read_bytes()
    real = Path.read_bytes

    def read(self):
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert digits.load(MODEL, None).weight.tolist() == [[3.0, 3.0]]
    assert "is not kept" in caplog.text
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.damaged"))


class Stub:
    """Stands for a network or tokenizer, written as one file."""

    def __init__(self, name, error=None):
        self.name, self.error = name, error

    def save_pretrained(self, folder):
        """Write it, or fail as safetensors does on a full disk."""
        if self.error is not None and str(folder).startswith(self.error):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        (Path(folder) / self.name).write_text(self.name)


def test_a_folder_that_can_not_be_kept_is_read_from_elsewhere(tmp_path, caplog):
    folder = tmp_path / "cache" / "tiny"

    def read(place):
        return (place / "net").read_text(), place

    def make(error=None):
        return lambda: (Stub("net", error), Stub("tok"))

    text, place = pretrained.read_or_make(folder, read, make(str(folder.parent)))
    assert (text, place == folder) == ("net", False)
    assert place.exists(), "an offloaded network reads its weights later"
    assert caplog.text.count("is not kept") == 1
    assert [p.suffix for p in folder.parent.iterdir()] == [".lock"]
    with FullDisk(tmp_path, 0).mounted():
        assert pretrained.read_or_make(folder, read, make())[1] != folder
    assert pretrained.read_or_make(folder, read, make())[1] == folder
    with FullDisk(tmp_path, 0).mounted():
        assert pretrained.read_or_make(folder, read, lambda: None)[1] == folder


def test_a_fine_tuned_network_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "glue" / "bert"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        pretrained.save(Stub("net", str(tmp_path)), Stub("tok"), folder, {"seed": 0})
    assert list(folder.parent.iterdir()) == []
    pretrained.save(Stub("net"), Stub("tok"), folder, {"seed": 0})
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        pretrained.save(Stub("new", str(tmp_path)), Stub("tok"), folder, {"seed": 1})
    assert sorted(p.name for p in folder.iterdir()) == ["finetune.json", "net", "tok"]

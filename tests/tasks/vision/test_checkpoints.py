"""Reading full-precision weights."""

from __future__ import annotations

import os

import pytest
import torch

from flexround.models.vision import VisionModel
from tasks.vision import checkpoints

TINY = VisionModel("timm", "test_efficientnet", None, 8, False, False, [])
OTHER = VisionModel("timm", "test_resnet", None, 8, False, False, [])


@pytest.fixture
def saved(tmp_path):
    network = TINY.build(10)
    path = tmp_path / "net.safetensors"
    checkpoints.save(network, path)
    return network, path


def test_safetensors_and_state_dict_give_the_same_weights(saved, tmp_path):
    network, path = saved
    torch.save({"state_dict": network.state_dict()}, tmp_path / "net.pth")
    for source in (path, tmp_path / "net.pth"):
        loaded = checkpoints.load_into(TINY.build(10), str(source), TINY)
        for name, tensor in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_other_names_in_the_same_order_are_taken_in_order(saved, tmp_path):
    network, _ = saved
    renamed = {f"x{i}": t for i, t in enumerate(network.state_dict().values()) if t.dim()}
    torch.save(renamed, tmp_path / "renamed.pth")
    loaded = checkpoints.load_into(TINY.build(10), str(tmp_path / "renamed.pth"), TINY)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(image), network.eval()(image))


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [(OTHER, 10, r"is not of test_resnet: it has no"), (TINY, 7, r"classifier.weight is \[10")],
    ids=["architecture", "head"],
)
def test_another_architecture_or_head_is_refused(saved, model, classes, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.load_into(model.build(classes), str(saved[1]), model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(saved, tmp_path, suffix):
    path = tmp_path / f"torn{suffix}"
    if suffix == ".pth":
        torch.save(saved[0].state_dict(), path)
    else:
        path.write_bytes(saved[1].read_bytes())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged or truncated"):
        checkpoints.read(path)


class Harmful:
    """Unpickles into a command."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path):
    path, witness = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"weight": Harmful(witness)}, path)
    with pytest.raises(ValueError, match="would run code"):
        checkpoints.read(path)
    assert not witness.exists()


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no state dict"):
        checkpoints.read(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.safetensors", "no such file; give a torchvision weights name"),
     ("package:no_such_package/a.pth", "package no_such_package is not installed; pip install"),
     ("package:timm/no_such_file.pth", "no such file")],
)  # fmt: skip
def test_a_missing_file_is_refused_with_the_way_out(source, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.locate(source)

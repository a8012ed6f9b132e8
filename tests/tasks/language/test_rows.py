"""The files of a tokenizer, which digests of evaluation data begin with, tell no place."""

from __future__ import annotations

import json

import pytest

from tasks.language import tiny_models
from tasks.language.rows import files_of

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")


@pytest.fixture
def tokenizer(tmp_path):
    tiny_models.tokenizer(pairs=False).save_pretrained(tmp_path)
    return transformers.AutoTokenizer.from_pretrained(tmp_path)


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_tokenizer_of_the_hub_has_the_files_of_its_copy_in_a_folder(tokenizer, tmp_path):
    """The library writes down is_local, and local_files_only where it was kept off the hub."""
    tokenizer.init_kwargs |= {"is_local": True, "local_files_only": False}
    local = dict(files_of(tokenizer))
    for found in ((False, False), (False, True), (True, True)):
        tokenizer.init_kwargs |= dict(zip(("is_local", "local_files_only"), found, strict=True))
        assert dict(files_of(tokenizer)) == local


def test_the_files_of_a_tokenizer_in_a_folder_are_as_they_are_saved(tokenizer, tmp_path):
    """Records have digests of them."""
    tokenizer.init_kwargs |= {"is_local": True, "local_files_only": False, "told": "caf\u00e9"}
    assert dict(files_of(tokenizer)) == saved(tokenizer, tmp_path / "saved")
    built = tiny_models.tokenizer(pairs=False)  # was loaded from nowhere
    files = dict(files_of(built))
    assert files == saved(built, tmp_path / "built")
    assert "is_local" not in json.loads(files["tokenizer_config.json"])
    tokenizer.init_kwargs["is_local"] = False
    assert dict(files_of(tokenizer)) == saved_as_local(tokenizer, tmp_path / "again")


def saved_as_local(tokenizer, folder):
    """Return what transformers itself writes of the tokenizer in a folder."""
    tokenizer.init_kwargs["is_local"] = True
    files = saved(tokenizer, folder)
    tokenizer.init_kwargs["is_local"] = False
    return files

"""The cache: made once, checked when read, never larger than its limit."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from experiment import content, full_precision
from experiment.full_precision import FullPrecision, digest_of, digest_of_model
from experiment.shared_cache import Cache
from experiment.shared_tensors import SharedSearches
from flexround.calibration.activation_cache import ActivationCache
from tests.flexround.reconstruction.test_reconstruction import adapter, calibration
from tests.full_disk import FullDisk


def never():
    raise AssertionError("it is there")


def test_an_entry_is_made_once(tmp_path):
    cache = Cache(tmp_path, 1)
    assert cache.get("a", lambda: b"one") == b"one"
    assert Cache(tmp_path, 1).get("a", never) == b"one"


def test_two_at_once_make_it_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return b"it"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: Cache(tmp_path, 1).get("a", make), range(8)))
    assert found == [b"it"] * 8
    assert len(made) == 1


def test_where_nothing_is_kept_nobody_waits(tmp_path):
    """Of a hundred jobs of a sweep each would else wait for all before it."""
    both = threading.Barrier(2, timeout=20)

    def make():
        both.wait()  # breaks unless both make it at once
        return b"it"

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: Cache(tmp_path, 0).get("a", make), range(2)))
    assert found == [b"it"] * 2
    assert list(tmp_path.iterdir()) == []


def test_one_that_dies_while_making_leaves_nothing(tmp_path):
    cache = Cache(tmp_path, 1)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: bytes(1 // 0))
    assert list(tmp_path.iterdir()) == []
    assert cache.get("a", lambda: b"it") == b"it"


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1], lambda data: data[:-1] + b"x", bytes.lower]
)
def test_a_damaged_entry_is_named_set_aside_and_made_again(tmp_path, caplog, harm):
    cache = Cache(tmp_path, 1)
    cache.get("a", lambda: b"VALUE")
    path = tmp_path / "a.entry"
    path.write_bytes(harm(path.read_bytes()))
    assert cache.get("a", lambda: b"VALUE") == b"VALUE"
    assert f"cache entry {path} is damaged" in caplog.text
    assert path.with_suffix(".damaged").exists()
    assert cache.get("a", never) == b"VALUE"


def test_what_was_not_read_for_the_longest_goes(tmp_path):
    cache = Cache(tmp_path, 2.5 * (1000 + 32) / 2**30)
    for age, key in ((30, "a"), (20, "b")):
        cache.get(key, lambda: bytes(1000))
        past = (tmp_path / f"{key}.entry").stat().st_mtime - age
        os.utime(tmp_path / f"{key}.entry", (past, past))
    cache.get("a", never)  # read just now
    cache.get("c", lambda: bytes(1000))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.entry", "c.entry"]


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path):
    cache = Cache(tmp_path, 0)
    assert cache.get("a", lambda: b"it") == b"it"
    assert list(tmp_path.glob("*.entry")) == []


def test_a_full_disk_costs_the_entry_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert Cache(tmp_path, 1).get("a", lambda: b"it") == b"it"
    assert "not kept: No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


class Measured:
    """A task on data, which counts how often it measures; its metric is the data's first."""

    metric, version = "top1", 1

    def __init__(self, data):
        self.data, self.times = data, 0

    def evaluation_data(self):
        """Return the data."""
        return self.data

    def evaluate(self, adapter):
        """Return the data's first number."""
        self.times += 1
        return {"top1": float(torch.as_tensor(self.data[0]).flatten()[0]) if self.data else 0.0}

    evaluate_reference = evaluate

    def compared(self, adapter):
        """Return the data, made once more."""
        self.times += 1
        yield from self.data

    def check_full_precision(self, metrics):
        """Take any."""


def shared(cache, model, batch_size=8, task=None, code="1"):
    return FullPrecision(cache, model, calibration(), task or Measured([]), batch_size, code=code)


def test_a_reference_is_shared_by_what_was_measured_on_and_in_its_own_type(tmp_path):
    cache, model = Cache(tmp_path, 1), adapter()
    half = ActivationCache(torch.bfloat16)
    values = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    one, again, changed = Measured([values]), Measured([values.clone()]), Measured([values + 1])
    for task in (one, again):
        assert torch.equal(shared(cache, model, task=task).reference({}, half), values)
    assert torch.equal(shared(cache, model, task=changed).reference({}, half), values + 1)
    assert (one.times, again.times, changed.times) == (1, 0, 1)


def test_metrics_are_shared_by_what_was_measured_on(tmp_path):
    cache, model = Cache(tmp_path, 1), adapter()
    images = torch.arange(6.0).view(2, 3)
    one, again, changed = Measured([images]), Measured([images.clone()]), Measured([images + 1])
    assert shared(cache, model, task=one).metrics({}) == {"top1": 0.0}
    assert shared(cache, model, task=again).metrics({}) == {"top1": 0.0}
    assert shared(cache, model, task=changed).metrics({}) == {"top1": 1.0}
    assert (one.times, again.times, changed.times) == (1, 0, 1)


def test_nothing_is_lent_to_other_code(tmp_path):
    """Of a mended forward pass the modules and weights are as before, and the values are not."""
    cache, model = Cache(tmp_path, 1), adapter()
    before, after = Measured([torch.zeros(1)]), Measured([torch.zeros(1)])
    assert shared(cache, model, task=before).metrics({}) == {"top1": 0.0}
    after.evaluate_reference = lambda _: {"top1": 2.0}
    mended = shared(cache, model, task=after, code="2")
    assert mended.metrics({}) == {"top1": 2.0}
    old, new = torch.zeros(1, 3), torch.ones(1, 3)
    shared(cache, model).outputs().get(0, lambda: old)
    assert torch.equal(shared(cache, model).outputs().get(0, lambda: new), old), "of the same code"
    assert torch.equal(shared(cache, model, code="2").outputs().get(0, lambda: new), new)


def test_files_are_read_once_while_their_times_stay(tmp_path, monkeypatch):
    cache, model, read = Cache(tmp_path / "cache", 1), adapter(), []
    path = tmp_path / "image"
    path.write_bytes(b"one")
    real = full_precision.bytes_of

    def count(path):
        read.append(path)
        return real(path)

    monkeypatch.setattr(full_precision.digest_of, "__defaults__", (count,))

    def found():
        return shared(cache, model, task=Measured([("image", path)])).evaluation_data

    first = found()
    assert found() == first
    assert len(read) == 2, "its times could hide another writing as yet"
    monkeypatch.setattr(content, "SETTLED", -1.0)
    assert {found() for _ in range(3)} == {first}
    assert len(read) == 3
    path.write_bytes(b"two")
    assert found() != first
    path.write_bytes(b"one")
    assert found() == first


def test_a_task_that_does_not_say_what_it_measures_on_shares_nothing(tmp_path):
    cache, silent = Cache(tmp_path, 1), Measured(None)
    for _ in range(2):
        assert shared(cache, adapter(), task=silent).metrics({}) == {"top1": 0.0}
    assert silent.times == 2
    assert shared(cache, adapter(), task=silent).evaluation_data is None


def test_the_digest_of_data_sees_values_shapes_types_and_nesting():
    data = [
        [torch.zeros(4)], [torch.zeros(2, 2)], [torch.zeros(4, dtype=torch.int32)],
        [torch.zeros(2), torch.zeros(2)], [(torch.zeros(2), torch.zeros(2))], [-torch.zeros(4)],
        ["a", "b"], ["ab"], [("a", "b")], [{"a": "b"}], [1], [1.0], ["1"], [True], [b"1"], [None],
    ]  # fmt: skip
    assert len({digest_of(parts) for parts in data}) == len(data)
    assert digest_of([torch.arange(4)]) == digest_of(iter([torch.arange(8)[:4].clone()]))


def test_targets_are_the_same_and_computed_once(tmp_path):
    cache, outputs = Cache(tmp_path, 1), torch.randn(4, 3)
    assert torch.equal(shared(cache, adapter()).outputs().get(0, lambda: outputs), outputs)
    assert torch.equal(shared(cache, adapter()).outputs().get(0, never), outputs)


def test_targets_of_another_network_batch_or_block_are_others(tmp_path):
    cache, made = Cache(tmp_path, 1), []

    def ask(model, batch_size=8, block=0):
        def make():
            made.append(1)
            return torch.zeros(1)

        shared(cache, model, batch_size).outputs().get(block, make)

    changed = adapter()
    with torch.no_grad():
        changed.model[0].weight[0, 0, 0, 0] += 1e-3
    for args in ((adapter(),), (changed,), (adapter(), 4), (adapter(), 8, 1)):
        ask(*args)
    assert len(made) == 4
    ask(adapter())
    assert len(made) == 4


def test_targets_that_would_fill_the_cache_are_not_kept(tmp_path):
    cache = Cache(tmp_path, 1e-6)  # about a kilobyte
    targets = shared(cache, adapter()).outputs()
    large = torch.zeros(1000)
    for block in range(3):
        assert targets.get(block, lambda: large) is large
    assert sum(p.stat().st_size for p in tmp_path.glob("*.entry")) < 1000


def test_the_digest_sees_structure_and_values():
    one, other = (
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.GELU()),
    )
    other.load_state_dict(one.state_dict())
    half = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to(torch.bfloat16)

    def digest(model):
        return digest_of_model(model, model.state_dict().items())

    digests = {digest(model) for model in (one, other, half)}
    assert len(digests) == 3
    assert digest(one) in digests


def refusing(monkeypatch, path, number):
    real = Path.read_bytes

    def read(self):
        if self == path:
            raise OSError(number, os.strerror(number), str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr("flexround.utils.file_errors.WAITS", (0.0,))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_an_entry_that_can_not_be_read_is_left_and_told_once(tmp_path, monkeypatch, caplog, number):
    Cache(tmp_path, 1).get("a", lambda: b"theirs")
    path = tmp_path / "a.entry"
    before = path.read_bytes()
    refusing(monkeypatch, path, number)
    cache = Cache(tmp_path, 1)
    assert [cache.get("a", lambda: b"mine"), cache.get("a", lambda: b"mine")] == [b"mine"] * 2
    assert caplog.text.count("no cache") == 1
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_cache_is_used_for_what_is_in_it(tmp_path, monkeypatch, caplog):
    for key in "ab":
        Cache(tmp_path, 1).get(key, key.encode)
    damaged = tmp_path / "b.entry"
    damaged.write_bytes(b"x" * 40)
    disk = FullDisk(tmp_path, 0)
    cache = Cache(tmp_path, 1)
    with disk.mounted():
        assert cache.get("a", never) == b"a"
        assert cache.get("b", lambda: b"b") == b"b"
        assert cache.get("c", lambda: b"c") == b"c"
    assert caplog.text.count("no cache") == 1
    assert damaged.read_bytes() == b"x" * 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.entry", "b.entry"]


def test_an_entry_that_is_not_sound_is_made_again(tmp_path):
    Cache(tmp_path, 1).get("a", lambda: b"not JSON")
    cache = Cache(tmp_path, 1)
    assert cache.get("a", lambda: b"{}", lambda data: data == b"{}") == b"{}"
    assert (tmp_path / "a.damaged").exists()


FOUND = {"a scales": torch.ones(3), "a errors": torch.tensor([0.5, 2.0, 1.0]).double()}


def searched(cache, names=frozenset(FOUND), key="k"):
    """Return what is found of a block, and whether it was searched for."""
    searches, calls = SharedSearches(cache, key, 2), []
    found = searches.get("block", names, lambda: calls.append(1) or FOUND)
    assert found.keys() == FOUND.keys()
    assert all(torch.equal(found[name], FOUND[name]) for name in FOUND)
    assert searches.reused == 1 - len(calls)
    return bool(calls)


def test_a_search_is_done_once(tmp_path):
    cache = Cache(tmp_path, 1)
    assert [searched(cache), searched(cache), searched(cache, key="other")] == [True, False, True]


def test_what_a_search_found_of_other_places_is_searched_again(tmp_path, caplog):
    cache = Cache(tmp_path, 1)
    SharedSearches(cache, "k", 2).get("block", {"b"}, lambda: {"b": torch.ones(1)})
    assert searched(cache)
    assert "damaged" in caplog.text
    assert not searched(cache)


def test_searches_that_would_fill_the_cache_are_not_kept(tmp_path):
    size = sum(tensor.nbytes for tensor in FOUND.values())
    small, large = Cache(tmp_path / "a", (4 * size - 1) / 2**30), Cache(tmp_path / "b", 1)
    assert [searched(small), searched(small)] == [True, True]
    assert [searched(large), searched(large)] == [True, False]

"""The index beside the records: never the truth, and no record is read twice for it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.__main__ import main
from results.records import index
from results.records.record import Record
from results.records.store import Store
from results.tables.leaderboard import leaderboard, render
from tests.results.records.test_store import record

UNITS = [{"name": "layer1.0", "error_before": 2.0, "error_after": 1.0}]


@pytest.fixture
def small(monkeypatch):
    """Make the smallest folder worth an index, and every file old enough for it."""
    monkeypatch.setattr(index, "FEWEST", 1)
    monkeypatch.setattr(index, "MANY", 1)
    monkeypatch.setattr(index, "SETTLED", -60.0)


class Folder:
    """A folder of records that counts how many files are read."""

    def __init__(self, root, count=4):
        root.mkdir(exist_ok=True)
        self.root, self.store, self.read = root, Store(root), []
        for number in range(count):
            self.store.write(record(f"r{number}", 90.0 + number, seed=number, blocks=UNITS))

    def rows(self):
        """Return the rows, and the names of the files that were read for them."""
        self.read = []
        found = index.rows(self.root, self._read)
        return found, self.read

    def _read(self, path):
        self.read.append(path.name)
        return Record.from_json(json.loads(path.read_text()))

    def values(self):
        """Return the values by run."""
        return {row.run_id: row.value for row in self.rows()[0]}


def facts(row):
    return {f.name: getattr(row, f.name) for f in fields(row) if f.name != "blocks"}


def test_a_second_look_reads_no_record(tmp_path, small):
    folder = Folder(tmp_path)
    first, read = folder.rows()
    assert read == ["r0.json", "r1.json", "r2.json", "r3.json"]
    second, read = folder.rows()
    assert read == []
    truth = folder.store.load()
    assert [facts(r) for r in first] == [facts(r) for r in second] == [facts(r) for r in truth]
    assert asdict(truth[0])["blocks"] == UNITS


def test_only_what_is_new_is_read(tmp_path, small):
    folder = Folder(tmp_path)
    folder.rows()
    folder.store.write(record("r9", 50.0))
    assert folder.rows()[1] == ["r9.json"]
    assert folder.rows()[1] == []


def test_a_row_refuses_to_be_taken_for_a_record(tmp_path, small):
    row = Folder(tmp_path).rows()[0][0]
    for use in (list, len, bool, asdict):
        with pytest.raises(AssertionError, match="a row has no blocks"):
            use(row if use is asdict else row.blocks)
    with pytest.raises(AssertionError, match="a row has no blocks"):
        Store(tmp_path).write(row)
    assert "NotRead" in repr(row)


def _changed(path):
    """Return the text of a record with another value, of the same length."""
    return path.read_text().replace("90.0", "12.5")


def replaced(path):
    part = path.with_suffix(".part")
    part.write_text(_changed(path))
    part.replace(path)


def written_in_place(path):
    path.write_text(_changed(path))


def with_its_old_times(path):
    before, text = path.stat(), _changed(path)
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_one_with_its_times(path):
    before, part = path.stat(), path.with_suffix(".part")
    part.write_text(_changed(path))
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    part.replace(path)


def made_a_link(path):
    other = path.with_suffix(".elsewhere")
    other.write_text(_changed(path))
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change",
    [replaced, written_in_place, with_its_old_times, replaced_by_one_with_its_times, made_a_link],
)
def test_no_old_value_is_shown(tmp_path, small, change):
    folder = Folder(tmp_path)
    assert folder.values()["r0"] == 90.0
    change(tmp_path / "r0.json")
    assert folder.values() == {"r0": 12.5, "r1": 91.0, "r2": 92.0, "r3": 93.0}
    assert folder.read == ["r0.json"]
    assert folder.values()["r0"] == 12.5


def test_a_record_that_is_gone_is_gone(tmp_path, small):
    folder = Folder(tmp_path)
    folder.rows()
    (tmp_path / "r0.json").unlink()
    (tmp_path / "r1.json").rename(tmp_path / "other.json")
    assert folder.values() == {"r1": 91.0, "r2": 92.0, "r3": 93.0}
    shutil.rmtree(tmp_path)
    assert folder.rows() == ([], [])


def test_a_file_that_has_just_been_written_is_read_again(tmp_path, monkeypatch):
    # Within a tick of the file system's clock a second write leaves the times of the first.
    monkeypatch.setattr(index, "FEWEST", 1)
    monkeypatch.setattr(index, "MANY", 1)
    folder = Folder(tmp_path, count=2)
    folder.rows()
    assert folder.rows()[1] == ["r0.json", "r1.json"]
    later = index.time.time() + 2 * index.SETTLED
    monkeypatch.setattr(index.time, "time", lambda: later)
    folder.rows()
    assert folder.rows()[1] == []


def test_a_copied_folder_does_not_believe_the_copied_index(tmp_path, small):
    folder = Folder(tmp_path / "a")
    folder.rows()
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy2)
    copy = Folder(tmp_path / "b", count=0)
    assert len(copy.rows()[1]) == 4


def signed(body):
    return index._head(body) + b"\n" + body


def forged(data):
    """Return an index whose segment is data, with the digest that it should have."""
    return signed(json.dumps(data).encode() + b"\n")


class Bomb:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def _bad_indices(whole):
    """Yield indices that are not what was written, and forged ones with a right digest."""
    yield b""
    yield b"\n"
    yield whole[:-1]
    yield whole[: len(whole) // 2]
    yield b"x" * len(whole)
    yield pickle.dumps(Bomb())
    yield signed(pickle.dumps(Bomb()))
    yield b"0" * 16 + whole[16:]
    yield whole.replace(b"90.0", b"95.0")
    for place in range(0, len(whole), 97):
        yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    texts, rows = json.loads(whole.partition(b"\n")[2])
    name, stamp, keys, numbers, shared, own = rows[0]
    for data in (
        {}, [], None, 5, [[], []], [texts], [texts, [[]]], [texts, None], [texts, {"a": 1}],
        [texts, [[name, stamp]]], [texts, [[name, stamp, keys, [10**6], shared, own]]],
        [texts, [[name, stamp, keys, ["a"], shared, own]]], [[], rows], [["{"] * 20, rows],
        [[5] * 20, rows], [['{"a": 1}'] * 20, rows], [["null"] * 20, rows],
        [texts, [[name, stamp, keys, numbers, shared, own[:-1]]]],
        [texts, [[name, stamp, keys, numbers, shared, [None] * len(own)]]],
        [texts, [[name, stamp, keys, numbers, shared, [{}] * len(own)]]],
        [texts, [[name, stamp, [[]] * len(keys), numbers, shared, own]]],
        [texts, [[name, stamp, None, numbers, shared, own]]], [texts, [[[], stamp, 1, 2, 3, 4]]],
    ):  # fmt: skip
        yield forged(data)
    yield signed(b"[" * 100_000)
    yield signed(b'{"a":' * 100_000)


def test_a_damaged_or_forged_index_is_passed_over(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Folder(tmp_path / "records")
    right = folder.values()
    path = tmp_path / "records" / index.NAME
    whole = path.read_bytes()
    for bad in _bad_indices(whole):
        path.write_bytes(bad)
        assert folder.values() == right, bad[:200]
        assert folder.values() == right
        assert folder.read == [], "it was made anew"
    assert os.listdir(tmp_path) == ["records"]


def test_an_index_far_larger_than_its_folder_is_not_read(tmp_path, small, monkeypatch):
    folder = Folder(tmp_path)
    folder.rows()
    monkeypatch.setattr(index, "MOST_BYTES", 10)
    assert len(folder.rows()[1]) == 4


def test_a_row_of_a_file_without_a_stamp_is_not_believed(tmp_path, small):
    folder = Folder(tmp_path, count=1)
    folder.rows()
    path = tmp_path / index.NAME
    texts, rows = json.loads(path.read_bytes().partition(b"\n")[2])
    rows[0][:2] = ["gone.json", None]
    path.write_bytes(forged([texts, rows]))
    (tmp_path / "gone.json").symlink_to("nowhere")
    assert [r.run_id for r in Store(tmp_path).load(blocks=False)] == ["r0"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_index_that_cant_be_written_costs_time_alone(tmp_path, small, monkeypatch, code):
    def full(path, data):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(index, "write_whole", full)
    folder = Folder(tmp_path)
    assert len(folder.values()) == len(folder.values()) == len(folder.read) == 4
    assert sorted(os.listdir(tmp_path)) == [f"r{n}.json" for n in range(4)]


def test_a_folder_in_the_indexs_place_is_left_alone(tmp_path, small):
    folder = Folder(tmp_path)
    (tmp_path / index.NAME).mkdir()
    assert len(folder.values()) == len(folder.values()) == len(folder.read) == 4
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


def test_what_cant_be_read_is_told_at_every_load(tmp_path, small, caplog):
    folder = Folder(tmp_path, count=2)
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps(record("o").to_json() | {"schema": 99}))
    (tmp_path / "old.json").write_text(json.dumps(record("o").to_json() | {"schema": 1}))
    (tmp_path / "folder.json").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(folder.store.load()) == 2
        plain = [r.getMessage() for r in caplog.records]
        assert len(plain) == 4
        for _ in range(3):
            caplog.clear()
            assert len(folder.store.load(blocks=False)) == 2
            assert sorted(r.getMessage() for r in caplog.records) == sorted(plain)


def test_a_small_folder_has_no_index(tmp_path):
    folder = Folder(tmp_path)
    folder.rows()
    assert not (tmp_path / index.NAME).exists()


def test_the_index_of_runs_computed_again_does_not_grow(tmp_path, small):
    folder = Folder(tmp_path)
    folder.rows()
    once = (tmp_path / index.NAME).stat().st_size
    for turn in range(20):
        folder.store.write(record("r0", float(turn), started=str(turn)))
        assert folder.values()["r0"] == turn
    assert (tmp_path / index.NAME).stat().st_size < 4 * once


def test_many_may_look_at_once(tmp_path, small):
    folder = Folder(tmp_path, count=20)
    right = {f"r{n}": 90.0 + n for n in range(20)}

    def look(turn):
        if turn % 4 == 0:
            (tmp_path / index.NAME).unlink(missing_ok=True)
        return {r.run_id: r.value for r in Store(tmp_path).load(blocks=False)}

    with ThreadPoolExecutor(8) as pool:
        assert all(found == right for found in pool.map(look, range(60)))
    assert not list(tmp_path.glob(".*.part"))
    assert folder.values() == right


def test_equal_settings_are_one_object(tmp_path, small):
    for number in range(3):
        own = {"seed": number, "quant": {"_target_": "RTN"}, "bits": 4}
        Store(tmp_path).write(record(f"r{number}", settings=own))
    for _ in range(2):
        a, b, c = (row.settings["quant"] for row in Store(tmp_path).load(blocks=False))
        assert a is b is c


PLAIN = st.sampled_from([0, 1, True, False, None, 1.0, 0.1, "1", "a\r\n\u2028", "", 10**30])
NODE = st.dictionaries(st.sampled_from("pq"), PLAIN | st.lists(PLAIN, max_size=2), max_size=2)
SETTINGS = st.dictionaries(st.sampled_from(["lr", "b.c", "recon"]), PLAIN | NODE, max_size=3)


@st.composite
def many(draw):
    """Return records of few cells, with settings that differ in every way, and failed ones."""
    found = []
    for number in range(draw(st.integers(1, 8))):
        value = draw(st.floats(-1e9, 1e9))
        seed = draw(st.integers(0, 3))
        found.append(
            record(
                f"run{number}",
                value,
                draw(st.sampled_from(["ok", "ok", "failed"])),
                {"bits": 4, "seed": seed, **draw(SETTINGS)},
                seed=seed,
                quant=draw(st.sampled_from(["rtn", "flexround"])),
                blocks=UNITS,
                fp_metrics=draw(st.sampled_from([{}, {"top1": 98.0}])),
                started=draw(st.sampled_from(["1", "2"])),
                overrides=draw(st.sampled_from([None, ["bits=4"]])),
            )
        )
    return found


def table(records):
    try:
        return render(leaderboard(records), "csv") + render(leaderboard(records), "markdown")
    except ValueError as error:
        return str(error)


@given(many())
@settings(max_examples=60, deadline=None)
def test_the_tables_with_and_without_the_index_are_the_same(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FEWEST": 1, "MANY": 1, "SETTLED": -60.0}.items():
            patch.setattr(index, name, value)
        for row in rows:
            Store(root).write(row)
        truth = Store(root).load()
        for _ in range(2):
            found = Store(root).load(blocks=False)
            assert [repr(facts(r)) for r in found] == [repr(facts(r)) for r in truth]
            assert table(found) == table(truth)
        assert (root / index.NAME).exists()


def test_the_commands_say_the_same_with_the_index(tmp_path, small, capsys):
    Folder(tmp_path)
    said = []
    for _ in range(2):
        for view in ([], ["--where", "bits=4"], ["--by", "seed"], ["--where", "model=nix"]):
            main([*view, "--results-dir", str(tmp_path)])
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert "93.00" in said[0].out or "91.50" in said[0].out


def test_a_digest_is_of_the_whole_index(tmp_path, small):
    Folder(tmp_path).rows()
    head, _, body = (tmp_path / index.NAME).read_bytes().partition(b"\n")
    assert head.split() == [index.VERSION, hashlib.sha256(body).hexdigest().encode()]

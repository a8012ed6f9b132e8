"""Files that one process of many makes or takes away, with hard links and without."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import time

import pytest

from experiment.shared_cache import Cache
from flexround.utils import exclusive_files
from flexround.utils.exclusive_files import gate, keep_as, place_new, set_aside, take_away
from results.records.claim import Claim
from results.records.store import Store

FORK = multiprocessing.get_context("fork")
# A race that some order of the processes loses shows in few of its rounds.
ROUNDS = pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=pytest.mark.slow)])


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch):
    """Give the test a file system with hard links, or one without."""

    def refuse(*paths, **_):
        raise OSError(errno.EPERM, "Operation not permitted", str(paths[0]), None, str(paths[1]))

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


def together(count, job):
    """Return what job gives in count processes that start at once; raise what one of them does."""
    start, answers = FORK.Barrier(count), FORK.Queue()

    def one(number):
        start.wait()
        try:
            answers.put((None, job(number)))
        except BaseException as error:
            answers.put((repr(error), None))

    processes = [FORK.Process(target=one, args=(n,)) for n in range(count)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [error for error, _ in found if error] == []
    return [value for _, value in found]


@ROUNDS
def test_a_name_goes_to_one_of_many(tmp_path, links, rounds):
    def job(number):
        part = tmp_path / f"part{number}"
        part.write_text(str(number))
        return place_new(part, tmp_path / "it")

    for _ in range(rounds):
        won = together(6, lambda number: (job(number), str(number)))
        assert [name for got, name in won if got] == [(tmp_path / "it").read_text()]
        (tmp_path / "it").unlink()


def test_what_is_kept_stays_and_is_kept_once(tmp_path, links):
    (tmp_path / "it").write_text("one")
    keep_as(tmp_path / "it", tmp_path / "old")
    keep_as(tmp_path / "it", tmp_path / "old")
    assert (tmp_path / "it").read_text() == (tmp_path / "old").read_text() == "one"


def test_only_what_was_found_is_taken_away(tmp_path, links):
    path = tmp_path / "it.json"
    path.write_bytes(b"made anew")
    assert set_aside(path, b"damaged") is None
    assert not take_away(path, b"damaged", None)
    assert path.read_bytes() == b"made anew"
    assert set_aside(path, b"made anew") == tmp_path / "it.damaged"
    assert set_aside(path, b"made anew") is None
    assert [p.name for p in tmp_path.iterdir()] == ["it.damaged"]


def test_what_was_made_anew_between_two_looks_is_put_back(tmp_path, links, monkeypatch):
    path = tmp_path / "it.json"
    path.write_bytes(b"damaged")
    real = os.rename

    def late(source, target):
        if str(source) == str(path):
            path.write_bytes(b"made anew")
        real(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert set_aside(path, b"damaged") is None
    assert path.read_bytes() == b"made anew"
    assert [p.name for p in tmp_path.iterdir()] == ["it.json"]


def test_a_gate_that_a_dead_process_has_left_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(exclusive_files, "PATIENCE", 0.2)
    (tmp_path / ".it.gate").mkdir()
    began = time.monotonic()
    with gate(tmp_path / "it"):
        assert (tmp_path / ".it.gate").is_dir()
    assert 0.2 <= time.monotonic() - began < 20
    assert list(tmp_path.iterdir()) == []


def damaged_meeting(root, processes, count):
    """Have processes meet count damaged entries, records and claims, each in its own order."""
    for number in range(count):
        (root / f"{number}.entry").write_bytes(os.urandom(200))
        (root / f"r{number}.json").write_bytes(b'{"run_id": ')
        (root / f"c{number}.claim").write_bytes(b"")

    def job(number):
        order = [(kind, n) for kind in "erc" for n in range(count)]
        random.Random(number // 4).shuffle(order)
        cache, store = Cache(root, 1), Store(root)
        for kind, n in order:
            if kind == "e":
                assert cache.get(str(n), lambda n=n: b"%d" % n) == b"%d" % n
            elif kind == "r":
                assert store.get_or_quarantine(f"r{n}") is None
            else:
                Claim(root / f"c{n}.claim").take()

    together(processes, job)
    for kind, name in (("entries", "{}"), ("records", "r{}"), ("claims", "c{}")):
        for number in range(count):
            assert (root / f"{name.format(number)}.damaged").exists(), (kind, number)


def test_nobody_dies_of_what_many_find_damaged(tmp_path, links):
    damaged_meeting(tmp_path, 6, 20)


@pytest.mark.slow
def test_thirty_two_processes_and_a_thousand_damaged_files(tmp_path):
    damaged_meeting(tmp_path, 32, 334)


@ROUNDS
def test_a_claim_has_one_owner_of_many(tmp_path, links, rounds):
    for number in range(rounds):
        path = tmp_path / f"{number}.json"
        path.write_text("")

        def job(_, path=path):
            took = Claim(path).take() is None
            time.sleep(0.2)
            return took

        assert sum(together(6, job)) == 1

"""How a command ends when a signal tells it to: one line, 128 + the signal's number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexround.utils import ending, leaving, processes

ROOT = Path(__file__).resolve().parents[3]
WORDS = {
    signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP",
}  # fmt: skip

# A door that says where it is, in {where}, and waits there.
SCRIPT = """
import sys, time
from flexround.utils import ending, leaving
leaving.listen()

def at_work():
    print("here", flush=True)
    time.sleep(60)

{before}
with leaving.door("go on with it"):
    with leaving.undoing(lambda: print("given back", flush=True)):
        {where}
{after}
"""
IN_IMPORT = "sys.path.insert(0, {folder!r}); import slow"


def ended(tmp_path, where, number, before="", after="", times=1, gap=0.0):
    """Return (status, stdout, stderr) of a script that a signal has met where it says so."""
    (tmp_path / "script.py").write_text(SCRIPT.format(where=where, before=before, after=after))
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    for _ in range(times):
        process.send_signal(number)
        time.sleep(gap)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_at_work_is_one_line_and_gives_back(tmp_path, number, times):
    status, out, err = ended(tmp_path, "at_work()", number, times=times)
    assert (status, err) == (128 + number, f"{WORDS[number]}; go on with it\n")
    assert out.strip() == "given back"


WHILE_OPENING = """
import os, threading
start = threading.Thread.start

def killed(thread):
    os.kill(os.getpid(), {number})
    time.sleep(1)
    start(thread)

threading.Thread.start = killed
print("here", flush=True)
"""


@pytest.mark.parametrize("number", WORDS)
def test_a_signal_while_the_door_opens_is_one_line(tmp_path, number):
    before = WHILE_OPENING.format(number=int(number))
    status, _, err = ended(tmp_path, "pass", number, before=before, times=0)
    assert (status, err) == (128 + number, f"{WORDS[number]}; go on with it\n")


def test_in_a_finalizer_no_exception_can_be_lost(tmp_path):
    """Python would print it, with a traceback, and go on."""
    before = (
        "class Held:\n    def __del__(self):\n        print('here', flush=True)\n"
        "        time.sleep(0.3)\n"
    )
    where = "Held(); time.sleep(60)"
    status, out, err = ended(tmp_path, where, signal.SIGTERM, before=before)
    assert (status, out, err) == (143, "given back\n", "ended by SIGTERM; go on with it\n")


def test_a_signal_between_a_door_and_what_it_holds_is_one_line(tmp_path):
    """As where contextlib has just come back from the door."""
    before = "ending.state.number = 15; print('here', flush=True); raise leaving.Left"
    status, out, err = ended(tmp_path, "pass", signal.SIGTERM, before=before, times=0)
    assert (status, out, err) == (143, "", "ended by SIGTERM\n")


def test_before_the_door_nothing_is_given_back(tmp_path):
    assert ended(tmp_path, "pass", signal.SIGINT, before="at_work()") == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "code",
    [
        # What numpy's and other modules in C make of an exception.
        "try: at_work()\nexcept BaseException as e: raise ImportError('broken') from e",
        "try: at_work()\nexcept BaseException: pass\ntime.sleep(60)",
    ],
)
def test_inside_an_import_no_exception_can_be_lost(tmp_path, code):
    (tmp_path / "slow.py").write_text(f"import time\nfrom __main__ import at_work\n{code}\n")
    status, out, err = ended(tmp_path, "import slow", signal.SIGINT)
    assert (status, err) == (130, "interrupted; go on with it\n")
    assert out.strip() == "given back"


@pytest.mark.parametrize(
    "where",
    [
        "exec('try: at_work()\\nexcept BaseException: raise RuntimeError from None')",
        "exec('try: at_work()\\nexcept BaseException: pass')",
    ],
)
def test_an_exception_that_a_library_made_its_own_is_still_the_signal(tmp_path, where):
    status, _, err = ended(tmp_path, where, signal.SIGTERM)
    assert (status, err) == (143, "ended by SIGTERM; go on with it\n")


def test_what_swallows_the_signal_is_ended_after_a_while(tmp_path):
    where = "exec('try: at_work()\\nexcept BaseException: time.sleep(60)')"
    before = "ending.GRACE = 1.0"
    status, out, err = ended(tmp_path, where, signal.SIGTERM, before=before)
    assert (status, err) == (143, "ended by SIGTERM; go on with it\n")
    assert out.strip() == "given back"


def test_a_second_signal_that_insists_ends_at_once(tmp_path):
    where = "exec('try: at_work()\\nexcept BaseException: time.sleep(60)')"
    before = "ending.INSISTS = 0.5"
    began = time.monotonic()
    status, _, _ = ended(tmp_path, where, signal.SIGINT, before=before, times=2, gap=0.7)
    assert status == 130
    assert time.monotonic() - began < ending.GRACE


def test_what_nohup_ignores_stays_ignored(tmp_path):
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    (tmp_path / "script.py").write_text(
        SCRIPT.format(
            before=before.replace("; ", "\n"), where="import os; os.kill(os.getpid(), 1)", after=""
        )
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=env, timeout=30)
    assert done.returncode == 0


def test_a_fork_has_what_it_would_have_without_a_door():
    with leaving.door():
        child = os.fork()
        if child == 0:
            os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        assert os.waitpid(child, 0)[1] == 0


def test_a_fault_before_any_signal_stays_what_it_is():
    with pytest.raises(ValueError, match="mine"), leaving.door(), leaving.faults():
        raise ValueError("mine")

    def library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException as error:
            raise ValueError("a library's") from error

    with pytest.raises(SystemExit) as end, leaving.door(), leaving.faults():
        library()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_mark_tells_whether_its_process_lives():
    assert processes.lives(processes.mark()) is True
    child = os.fork()
    if child == 0:
        os._exit(0)
    own = processes.mark()
    dead = own.replace(f"-{os.getpid()}-", f"-{child}-")
    os.waitpid(child, 0)
    assert processes.lives(dead) is False
    reused = own.replace(f"-{processes.start_of(os.getpid())}-", "-1-")
    assert processes.lives(reused) is False
    assert processes.lives(own.replace(own[:8], "0" * 8)) is None
    assert processes.lives("of another version") is None


def test_a_signal_that_a_door_has_told_of_ends_no_later_one(monkeypatch, capsys):
    """Neither when the main thread is told again, nor when what goes on is ended."""
    monkeypatch.setattr(ending, "GRACE", 0.3)

    def told():
        with leaving.door("go on with it"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit):
        told()
    with pytest.raises(ZeroDivisionError), leaving.faults():
        raise ZeroDivisionError  # not the signal's
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        with leaving.door():
            time.sleep(0.1)
    assert capsys.readouterr().err == "ended by SIGTERM; go on with it\n"


COMMANDS = {
    "run": ("run.py", "--help"),
    "finetune": ("finetune.py", "--help"),
    "artifact": ("artifact.py", "--help"),
    "results": ("-m", "results", "--results-dir", "results/readme.jsonl"),
    "results, another's": ("-m", "results", "plan", "experiment=paper/table02", "bits=4"),
    "experiment": ("-m", "experiment", "plan", "experiment=paper/table02", "bits=4"),
}


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize(
    ("name", "env"),
    [*((name, BUFFERED) for name in COMMANDS), ("results", BUFFERED | {"PYTHONUNBUFFERED": "1"})],
    ids=[*COMMANDS, "unbuffered"],
)
def test_a_command_whose_reader_has_gone_ends_as_sigpipe_would_have_it(name, env):
    """As `python -m results | head` does, once head has all its lines."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *COMMANDS[name]]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    told = [line for line in done.stderr.splitlines() if "is the new name of" not in line]
    assert (done.returncode, told) == (128 + signal.SIGPIPE, [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_what_can_not_be_printed_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "experiment", "--help"]
        done = subprocess.run(
            command, cwd=ROOT, env=BUFFERED, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    line = "error: stdout: No space left on device; write it elsewhere\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_pipe_that_is_not_stdout_is_another_matter():
    def broken():
        with leaving.door():
            raise BrokenPipeError(32, "of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        broken()

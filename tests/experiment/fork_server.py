"""Server of command lines: each runs run.py in a child forked after all imports.

A request is a line of JSON, {"args", "folder", "seconds"}; so is the answer, {"status", "out",
"err"}, with status null where the time was over.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path


def serve() -> None:
    """Answer requests from stdin until it ends."""
    import sklearn.datasets  # noqa: F401
    import timm  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import results.tables.leaderboard  # noqa: F401
    import tasks.language.perplexity
    import tasks.language.python_topics  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(request)), file=answers, flush=True)


def _answer(request: dict[str, object]) -> dict[str, object]:
    folder = Path(str(request["folder"]))
    out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
    pid = os.fork()
    if pid == 0:
        _child(list(request["args"]), folder, out, err)  # type: ignore[call-overload]
    end = time.monotonic() + float(str(request["seconds"]))
    status = None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(0.01)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    texts = {n: p.read_text(errors="replace") for n, p in (("out", out), ("err", err))}
    return {"status": status, **texts}


def _child(args: list[str], folder: Path, out: Path, err: Path) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    status = 1
    try:
        import run
        from experiment.command_line import command_line

        sys.argv = ["run.py", *args]
        command_line(run.main)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()

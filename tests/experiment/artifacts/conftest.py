"""The command line of artifacts in this process."""

from __future__ import annotations

import pytest

import artifact


@pytest.fixture
def tool(capsys):
    """Return a function that runs `python artifact.py ARGS`: status, out, err."""

    def call(*args):
        capsys.readouterr()
        status = artifact.main([str(a) for a in args])
        return (status, *capsys.readouterr())

    return call

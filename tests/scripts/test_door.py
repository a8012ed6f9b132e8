"""Scripts that write tables tell bad input in one line."""

from __future__ import annotations

import pytest

from scripts import claims_page, methods_table, readme_tables
from scripts.door import enter

SCRIPTS = {
    "claims_page": claims_page,
    "methods_table": methods_table,
    "readme_tables": readme_tables,
}
BAD = {
    "claims_page": [["no_claim"], ["--no-runs", "flexround"], ["--nothing"]],
    "methods_table": [["more"], ["--nothing"]],
    "readme_tables": [["no_option=1"], ["--nothing"]],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_help(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        enter(SCRIPTS[name].main)
    assert left.value.code == 0
    assert f"python -m scripts.{name}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "words"), [(name, w) for name in BAD for w in BAD[name]])
def test_bad_input_is_one_line_and_writes_nothing(name, words, monkeypatch, capsys):
    script = SCRIPTS[name]
    monkeypatch.setattr("sys.argv", [name, *words])
    monkeypatch.setattr(script, "write_whole", lambda *_: pytest.fail("nothing is to be written"))
    with pytest.raises(SystemExit) as left:
        enter(script.main)
    told = capsys.readouterr().err or f"{left.value.code}\n"
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert left.value.code not in (0, None)

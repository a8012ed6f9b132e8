"""`make claims`: the runs behind the papers' claims, the ledger that keeps them, and its page.

    python -m scripts.claims_page [PART OF AN ID ...] [--also "data_dir=/data/wikitext-2"]

computes the runs of these claims that have no record yet, keeps the records behind all claims in
results/ledger.jsonl and writes the table of docs/claims.md from them. Given again it goes on where
it was; --no-runs leaves the runs out.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiment import ROOT
from flexround.utils.arguments import ArgumentParser
from flexround.utils.atomic_files import write_whole
from results.ledger.claims import chosen, read
from results.ledger.command import commands, keep
from results.ledger.gathering import Evidence, verdicts_in
from results.ledger.verdicts import DECIDED, Verdict, render
from results.records.reading import DEFAULT
from scripts.door import enter

PAGE = ROOT / "docs" / "claims.md"
TABLE = re.compile(r"(<!-- claims -->\n).*?(<!-- end -->)", re.DOTALL)


def with_table(text: str, told: Sequence[Verdict]) -> str:
    """Return the page's text with the table of told."""
    return TABLE.sub(lambda match: f"{match[1]}\n{render(told, 'markdown')}\n\n{match[2]}", text)


def unexplained(text: str, told: Sequence[Verdict]) -> list[str]:
    """Return the ids of the claims that fail and have no section of the page's text."""
    failing = [v.claim.id for v in told if v.word == DECIDED[1]]
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    return [name for name in failing if not any(f"`{name}`" in heading for heading in headings)]


def main(argv: Sequence[str]) -> int:
    """Do it; return the exit status, 1 where a run has failed."""
    parser = ArgumentParser(prog="python -m scripts.claims_page", description=__doc__)
    parser.add_argument("claims", nargs="*")
    parser.add_argument("--also", default="")
    parser.add_argument("--results-dir", type=Path, default=DEFAULT)
    parser.add_argument("--no-runs", action="store_true")
    args = parser.parse_args(argv)
    if args.no_runs and args.claims:
        parser.error("--no-runs leaves the runs of all claims out; name none")
    failed = 0
    if not args.no_runs:
        claims = chosen(read(), args.claims)
        also = f"{args.also} results_dir={args.results_dir}"
        for line in commands(claims, Evidence(claims, args.results_dir).found, also):
            print(line, flush=True)
            command = [sys.executable, *shlex.split(line)[1:]]
            failed |= subprocess.run(command, cwd=ROOT).returncode
    print(keep(args.results_dir))
    text = with_table(PAGE.read_text(), told := verdicts_in())
    write_whole(PAGE, text.encode())
    for name in unexplained(text, told):
        print(f"{PAGE.name}: {name} fails and is not explained", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    enter(main)

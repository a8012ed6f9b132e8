"""`python -m results claims`: verdicts, the records behind one, or the runs that are missing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flexround.utils.arguments import ArgumentParser
from flexround.utils.atomic_files import write_whole
from results.command_lines import COMMANDS, TEXTS, add_format
from results.ledger import kept
from results.ledger.claims import Claim, Overrides, chosen, read
from results.ledger.evidence import ERROR, Found, conflict, missing, scaled, value_of
from results.ledger.gathering import Evidence
from results.ledger.verdicts import render, verdicts
from results.records.reading import DEFAULT
from results.records.record import Record

SHOWN = ("records", "commands", "keep")  # instead of the verdicts


def command(argv: Sequence[str]) -> str:
    """Return what the command line asks for.

    Raises:
        ValueError: for claims that are none, options that do nothing, and as keep does.
    """
    line, example = COMMANDS["claims"]
    another = "python -m results claims gptq --commands --also data_dir=/data/wikitext-2"
    parser = ArgumentParser(
        prog="python -m results claims", description=line, examples=[example, another]
    )
    parser.add_argument("claims", nargs="*", help="parts of ids; all without")
    parser.add_argument(
        "--results-dir", type=Path, default=DEFAULT, metavar="PATH",
        help="folder of the records, or a .jsonl file of them; outputs/results by default, and the "
        "ledger's are there as well",
    )  # fmt: skip
    add_format(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--records", action="store_true", help="the runs behind each claim")
    shown.add_argument("--commands", action="store_true", help="what computes the missing runs")
    shown.add_argument(
        "--keep",
        action="store_true",
        help="write the runs behind all claims to results/ledger.jsonl",
    )
    parser.add_argument(
        "--also", default="", help="arguments for --commands, such as data_dir=/data/wikitext-2"
    )
    args = parser.parse_args(argv)
    if problem := _does_nothing(args):
        raise ValueError(f"{problem}; leave it out")
    everything = read()
    claims = chosen(everything, args.claims)
    if args.keep:
        return keep(args.results_dir)
    if args.results_dir != DEFAULT and not args.results_dir.exists():
        told = "there is no such folder yet; the ledger's records alone count"
        print(f"{args.results_dir}: {told}", file=sys.stderr)
    if args.commands or args.records:
        evidence = Evidence(claims, args.results_dir)
        if args.commands:
            return "\n".join(commands(claims, evidence.found, args.also))
        return "\n\n".join(behind(claim, evidence.found) for claim in claims)
    # Of all claims, whichever are shown: the correction is for how many are tested.
    evidence = Evidence(everything, args.results_dir)
    found = verdicts(everything, evidence.found, evidence.outcomes)
    return render([verdict for verdict in found if verdict.claim in claims], args.format)


def _does_nothing(args: argparse.Namespace) -> str | None:
    """Return which of the options does nothing beside the others."""
    other = next((name for name in SHOWN if getattr(args, name)), None)
    if args.also and other != "commands":
        return f"--also {args.also} does nothing without --commands"
    if args.format != TEXTS[0] and other:
        return f"--format {args.format} does nothing with --{other}"
    if args.claims and args.keep:
        return f"{args.claims[0]} does nothing with --keep, which keeps the runs of all claims"
    return None


def commands(claims: Iterable[Claim], found: Found, also: str = "") -> list[str]:
    """Return the command lines that compute the missing runs, each run once, with also in each."""
    left: dict[Overrides, list[int]] = {}
    order: dict[Overrides, str] = {}
    for claim in claims:
        if claim.under:
            for cell, seed in missing(claim, found):
                seeds = left.setdefault(cell, [])
                order.setdefault(cell, " ".join(sorted(cell, key=_place)))
                if seed not in seeds:
                    seeds.append(seed)
    return [
        f"python run.py -m {order[cell]} seed={','.join(map(str, sorted(seeds)))} {also}".rstrip()
        for cell, seeds in left.items()
    ]


def _place(override: str) -> tuple[int, str]:
    """Return where an override stands on a command line: model, task, method, bits, the rest."""
    name = override.partition("=")[0]
    order = ("model", "task", "quant", "bits")
    return (order.index(name) if name in order else len(order), override)


def behind(claim: Claim, found: Found) -> str:
    """Return claim's runs: sign, value, seed, name and command line, a line each."""
    lines = [f"{claim.id}: {claim.says} ({claim.source})"]
    if claim.needs:
        return f"{lines[0]}\n  needs {claim.needs}"
    for more, less in claim.settings:
        for sign, cells in (("+", more), ("-", less)):
            for cell in cells:
                given = " ".join(sorted(cell, key=_place))
                runs = sorted(found.get(cell, {}).items())
                lines += [f"  {sign} {_value(claim, run)} seed {seed} {run.run_id} {given}"
                          for seed, run in runs] or [f"  {sign} not run: {given}"]  # fmt: skip
    return "\n".join(lines)


def _value(claim: Claim, record: Record) -> str:
    """Return record's value, and in brackets what the contrast adds where that is another."""
    metric = claim.metric or str(record.metric)
    value = value_of(record, metric)
    added = scaled(metric, value)
    return f"{value:.4f}" + (f" ({added:.2f})" if added != value else "")


def keep(folder: Path) -> str:
    """Write the runs behind all claims, of folder and of the ledger itself; return where.

    Raises:
        ValueError: when the records of a claim do not compare; nothing is written then.
    """
    claims = read()
    evidence = Evidence(claims, folder)
    for claim in claims:
        if why := conflict(claim, evidence.found):
            raise ValueError(f"nothing is kept: of the claim {claim.id} {why}")
    wanted: dict[str, Record] = {}
    by_error: set[str] = set()
    for claim in claims:
        for cell in claim.cells:
            behind = {r.run_id: r for r in evidence.found.get(cell, {}).values()}
            wanted |= behind
            if claim.metric == ERROR:
                by_error |= behind.keys()
    entries = ((record, evidence.outcomes(record)) for record in wanted.values())
    write_whole(kept.LEDGER, kept.written(entries, by_error))
    return f"{len(wanted)} records in {kept.LEDGER}"

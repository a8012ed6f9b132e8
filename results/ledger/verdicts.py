"""Verdicts: each claim with its contrast, interval and what they decide, beside the paper's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from results.ledger.claims import Claim
from results.ledger.evidence import (
    LOGARITHMIC,
    Found,
    OutcomesOf,
    conflict,
    estimate,
    missing,
    mixed_arms,
    mixed_seeds,
    scaled,
)
from results.ledger.statistics import Estimate, decide, more_seeds, p_value
from results.tables.formats import MARK, latex, markdown
from results.tables.published_numbers import Cell
from results.tables.rank_tests import holm

HARDWARE, UNRUN, UNLIKE = "needs hardware", "not run", "does not compare"
DECIDED = ("holds", "fails")
ALPHA = 0.05


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        word: holds, fails, undecided, does not compare, needs hardware or not run.
        found: our contrast; None without a run.
        interval: its 95 % interval, None of fewer than two seeds.
        p: of what the verdict rejects, adjusted: with Holm's correction over all tested claims.
        why: what is missing, or what its records differ in.
        paper: the paper's own contrast, in the same unit.
        note: on which different machines runs were that are contrasted, and of how many networks
            the seeds are.
    """

    claim: Claim
    word: str
    found: Estimate | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    adjusted: float | None = None
    why: str = ""
    paper: float | None = None
    unit: str = ""
    note: str | None = None


def verdicts(claims: Sequence[Claim], found: Found, outcomes: OutcomesOf) -> list[Verdict]:
    """Return the verdict on each claim; Holm's correction is over all of those that are given."""
    told = [_verdict(claim, found, outcomes) for claim in claims]
    tested = [k for k, verdict in enumerate(told) if verdict.p is not None]
    for k, adjusted in zip(tested, holm([told[k].p or 0.0 for k in tested]), strict=True):
        told[k] = replace(told[k], adjusted=adjusted)
    return [replace(v, note=_note(v.claim, found)) if v.found else v for v in told]


def _note(claim: Claim, found: Found) -> str | None:
    """Return what a claim's runs differ in, in words; None where in nothing."""
    arms, seeds = mixed_arms(claim, found), mixed_seeds(claim, found)
    parts = [
        f"runs that are contrasted differ in {arms}" if arms else None,
        f"seeds are of {seeds}" if seeds else None,
    ]
    return "; ".join(filter(None, parts)) or None


def _verdict(claim: Claim, found: Found, outcomes: OutcomesOf) -> Verdict:
    paper = published_effect(claim)
    if claim.needs:
        return Verdict(claim, HARDWARE, why=claim.needs, paper=paper)
    if why := conflict(claim, found):
        return Verdict(claim, UNLIKE, why=why, paper=paper)
    contrast = estimate(claim, found, outcomes)
    if contrast is None:
        left = len({(*sorted(cell), seed) for cell, seed in missing(claim, found)})
        return Verdict(claim, UNRUN, why=f"{left} runs to do", paper=paper)
    record = next(iter(found[next(claim.cells)].values()))
    metric = claim.metric or str(record.metric)
    unit = f"% {metric}" if metric in LOGARITHMIC else f"points {metric}"
    if len(contrast.values) < 2:
        why = "one seed has no interval; 1 more at least"
        return Verdict(claim, "undecided", contrast, why=why, paper=paper, unit=unit)
    word, why = decide(contrast, claim.expect, claim.margin), ""
    if word == "undecided":
        more = more_seeds(contrast, claim.expect, claim.margin)
        seeds = "1 more seed" if more == 1 else f"{more} more seeds"
        why = seeds if more else "more evaluation samples, not seeds"
    p = p_value(contrast, claim.expect, claim.margin, word)
    return Verdict(claim, word, contrast, contrast.interval(), p, None, why, paper, unit)


def published_effect(claim: Claim) -> float | None:
    """Return the paper's contrast in the unit of ours, positive for the better."""
    more, less = claim.published_cells()
    if not more:
        return None

    def total(cells: Sequence[Cell]) -> float:
        return sum(scaled(cell.metric, cell.value) for cell in cells)

    sign = -1 if more[0].metric in LOGARITHMIC else 1
    return sign * (total(more) - total(less))


def frame(told: Sequence[Verdict]) -> pd.DataFrame:
    """Return a row for each verdict, unrounded."""
    return pd.DataFrame(
        {
            "claim": v.claim.id,
            "says": v.claim.says,
            "source": v.claim.source,
            "verdict": v.word,
            "unit": v.unit,
            "margin": v.claim.margin,
            "paper": v.paper,
            "ours": v.found.mean if v.found else None,
            "low": v.interval[0] if v.interval else None,
            "high": v.interval[1] if v.interval else None,
            "seeds": len(v.found.values) if v.found else 0,
            "p": v.p,
            "holm": v.adjusted,
            "missing": v.why,
            "note": v.note,
        }
        for v in told
    )


def render(told: Sequence[Verdict], form: str) -> str:
    """Return the verdicts as markdown or latex text, or their bare rows as csv."""
    if form == "csv":
        return frame(told).to_csv(index=False).rstrip("\n")
    return (
        latex(as_text(told)) if form == "latex" else f"{markdown(as_text(told))}\n\n{summary(told)}"
    )


def as_text(told: Sequence[Verdict]) -> pd.DataFrame:
    """Return the verdicts as text, a row each."""

    def number(value: float | None, form: str = "+.2f") -> str:
        return "-" if value is None else f"{value:{form}}"

    return pd.DataFrame(
        {
            "claim": v.claim.id,
            "says": v.claim.says,
            "source": v.claim.source,
            "paper": number(v.paper),
            "ours": f"{number(v.found.mean)} {v.unit}{MARK if v.note else ''}" if v.found else "-",
            "95 % interval": f"{v.interval[0]:+.2f} to {v.interval[1]:+.2f}" if v.interval else "-",
            "seeds": str(len(v.found.values)) if v.found else "-",
            "p": number(v.p, ".2g"),
            "Holm": number(v.adjusted, ".2g"),
            "verdict": v.word + (f": {v.why}" if v.why else ""),
        }
        for v in told
    )


def summary(told: Sequence[Verdict]) -> str:
    """Return the lines below the table: how many are decided, and what many tests mean."""
    words = {word: sum(v.word == word for v in told) for word in (*DECIDED, "undecided", UNLIKE)}
    decided = words["holds"] + words["fails"]
    testable = sum(v.word != HARDWARE for v in told)
    stay = sum(v.word in DECIDED and (v.adjusted or 0.0) < ALPHA for v in told)
    unlike = f", {words[UNLIKE]} of them as their records do not compare" if words[UNLIKE] else ""
    lines = [
        f"{decided} of {testable} testable claims are decided: {words['holds']} hold, "
        f"{words['fails']} fail. {words['undecided'] + words[UNLIKE]} are undecided{unlike}, "
        f"{sum(v.word == UNRUN for v in told)} not run; {len(told) - testable} need what is not "
        "here.",
        "ours, paper: the contrast, positive for the better, in points of a percentage or in "
        "percent (100 times the logarithm of the ratio) of a perplexity, divergence or error. "
        "Interval: Student's t over seeds and over evaluation samples, whose halves add in "
        "squares. A claim fails where the interval is below its margin and else holds where it is "
        "above zero; of two that should be the same, where it is within the margin or outside of "
        "it.",
        f"p: two-sided, of what the verdict rejects. Of {decided} verdicts at 5 %, chance alone "
        f"would give {ALPHA * decided:.1f} wrong ones; with Holm's correction, "
        f"over all tested claims, {stay} stay decided.",
    ]
    for note in dict.fromkeys(v.note for v in told if v.note):
        where = ", ".join(v.claim.id for v in told if v.note == note)
        lines.append(f"{MARK} {note}: {where}")
    return "\n\n".join(lines)

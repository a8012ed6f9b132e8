"""Names of classes: which class of a task each output of a checkpoint's head stands for.

A checkpoint says it in its configuration's id2label. roberta-large-mnli has contradiction, neutral,
entailment where GLUE's data have entailment, neutral, contradiction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# What classes of GLUE are called elsewhere, as `_plain` writes it, by the name that GLUE has.
VARIANTS = {
    "entailment": ("entail", "entails", "entailed"),
    "contradiction": ("contradict", "contradicts", "contradictory"),
    "not entailment": ("not entail", "not entailed"),
    "acceptable": ("grammatical", "linguistically acceptable"),
    "not acceptable": ("not grammatical", "linguistically not acceptable"),
    "positive": ("pos",),
    "negative": ("neg",),
    "equivalent": ("paraphrase", "semantically equivalent"),
    "not equivalent": ("not paraphrase", "not semantically equivalent"),
    "duplicate": ("duplicates", "duplicated"),
    "not duplicate": ("not duplicates", "not duplicated"),
}
_KNOWN = {variant: name for name, variants in VARIANTS.items() for variant in variants}


def class_order(own: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return the place among a task's names of each class that a head calls own, [classes].

    Names are compared without case and in their common variants; a name that is a number, as in
    LABEL_0, is the number of the task's class. None where own are numbers of no classes here.

    Raises:
        ValueError: when own are words, and not those of names.
    """
    numbers = [re.fullmatch(r"(?:label|class)?[\s_-]*(\d+)", name.strip().lower()) for name in own]
    places = list(range(len(names)))
    if all(numbers):
        order = [int(match[1]) for match in numbers if match]
        return order if sorted(order) == places else None
    known = {_plain(name): place for place, name in enumerate(names)}
    found = [known.get(_plain(name), -1) for name in own]
    if sorted(found) != places:
        raise ValueError(f"calls its classes {', '.join(own)}, not {', '.join(names)}")
    return found


def _plain(name: str) -> str:
    """Return the one form of a name's variants: "Non-Entailment" is "not entailment"."""
    words = re.sub(r"[\s_-]+", " ", name).strip().lower().removeprefix("is ")
    words = re.sub(
        r"\b(?:non|no|not) ?(?=entail|equivalent|duplicate|paraphrase|acc)", "not ", words
    )
    words = re.sub(r"\bun(?=acceptable|grammatical)", "not ", words)
    return _KNOWN.get(words, words)

"""Hooks of the site: what mkdocs needs so that the pages of docs/ are right on GitHub and there."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links to files outside of docs/ are their texts: the site has none."""
    return OUTSIDE.sub(r"\1", markdown)

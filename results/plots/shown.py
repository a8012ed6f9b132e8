"""Figures as a notebook shows them."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from results.plots.style import RC


class Figures(dict[str, Figure]):
    """Figures by name, which a notebook shows one below the other; `save` writes them."""

    def save(self, folder: str | Path) -> list[Path]:
        """Write each figure as NAME.svg and NAME.png into folder and return the paths."""
        from results.plots import write

        return write(dict(self), Path(folder))

    def _repr_html_(self) -> str:
        """Return the figures as SVG, which is what a notebook asks for."""
        texts = []
        with rc_context(RC):
            for figure in self.values():
                file = io.StringIO()
                figure.savefig(file, format="svg", metadata={"Date": None})
                texts.append(file.getvalue()[file.getvalue().index("<svg") :])
        return "\n".join(texts)

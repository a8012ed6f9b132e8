"""The application: how a command line becomes a run and its record."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout, which holds conf/ and outputs/

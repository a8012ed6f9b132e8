"""Artifacts of runs: written, rebuilt, measured again, and described by a card."""

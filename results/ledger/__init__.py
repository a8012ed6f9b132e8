"""Verdicts on the papers' claims, from records."""

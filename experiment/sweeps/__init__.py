"""Sweeps: what they would run, what has become of them, and the table at their end."""

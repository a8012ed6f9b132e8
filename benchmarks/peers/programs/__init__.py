"""Programs that are compared; each module has start, run (which is measured) and weights."""

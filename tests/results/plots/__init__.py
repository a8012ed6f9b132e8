"""Tests of results.plots."""

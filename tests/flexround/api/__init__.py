"""Tests of the one call."""

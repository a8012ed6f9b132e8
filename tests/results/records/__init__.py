"""Tests of results.records."""

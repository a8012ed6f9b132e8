"""Tests of results.page."""

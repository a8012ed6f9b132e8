"""Tests of tasks.language."""

"""Tests of tasks.vision."""

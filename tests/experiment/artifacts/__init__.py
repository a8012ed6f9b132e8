"""Tests of experiment.artifacts."""

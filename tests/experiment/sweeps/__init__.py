"""Tests of experiment.sweeps."""

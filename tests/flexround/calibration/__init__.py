"""Tests of flexround.calibration."""

"""Tests of flexround.activations."""

"""Tests of flexround.transforms."""

"""Tests of flexround.utils."""

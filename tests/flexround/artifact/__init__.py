"""Tests of flexround.artifact."""

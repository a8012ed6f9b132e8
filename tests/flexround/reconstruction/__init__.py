"""Tests of flexround.reconstruction."""

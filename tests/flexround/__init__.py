"""Tests of flexround."""

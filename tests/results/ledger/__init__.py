"""Tests of results.ledger."""

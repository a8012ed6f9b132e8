"""Hydra configuration tree: YAML files alone; experiment/config.py is its schema."""

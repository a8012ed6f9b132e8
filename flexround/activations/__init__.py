"""Activation quantizers, and the hooks that put them into a model."""

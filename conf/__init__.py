"""The Hydra configuration tree, its schema, and the one place where configurations become objects."""

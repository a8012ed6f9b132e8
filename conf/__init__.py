"""The Hydra configuration tree, its schema, and how configurations become objects."""

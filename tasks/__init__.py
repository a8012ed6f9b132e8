"""Tasks: data and metric, and where a model's full-precision checkpoint comes from."""

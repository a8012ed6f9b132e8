"""Tasks of image classifiers."""

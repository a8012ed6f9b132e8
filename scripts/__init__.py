"""Scripts that make what the repository keeps."""

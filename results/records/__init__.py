"""Records of runs: the row, the folder, claims on runs, what each sample came to."""

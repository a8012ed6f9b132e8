"""One script for a machine with a GPU: checks, times and memory, in parts that are kept."""

import os

# Imports that look for a GPU ask the driver's library: a process that has asked CUDA itself can't
# fork children that use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

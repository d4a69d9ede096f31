"""The ops on a GPU, over the kernels that a backend supplies."""

"""The compiled CUDA extension."""

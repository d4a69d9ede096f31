"""The Triton kernels of memmod.kernels."""

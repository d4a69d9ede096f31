"""Triton kernels, one file per op; installed as memmod.kernels."""

"""Triton kernels for NVIDIA GPUs; installed as memmod.kernels.

A file reads from the device to the user: kernels, then the host functions that launch them. Inside kernels `i_` is a
program's or a step's number, `o_` are offsets, `m_` masks, `p_` pointers and `b_` loaded blocks.
"""

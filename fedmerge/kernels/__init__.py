"""Fused versions of common rules: one pass that trims, elects and averages while the values are in cache.

The composition of a rule's stages stays the reference; a kernel gives the same bits, faster.

plan.py     which chains have one
outputs.py  where results go
cpu.py      numba, for tensors in memory
gpu.py      Triton, for tensors on a GPU
"""

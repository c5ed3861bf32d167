"""Triton kernels, each with its host wrapper, torch reference, test and benchmark."""

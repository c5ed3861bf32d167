"""Decoding: the loop that turns a model, a sampler and a prompt into tokens."""

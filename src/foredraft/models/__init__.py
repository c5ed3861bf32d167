"""Decoder-only Transformers, their cache, and the branches that can be skipped."""

"""Decoding steps that are compiled ahead of time or recorded as graphs."""

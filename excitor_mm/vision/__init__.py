"""Frozen encoders: one file a library, one tower that joins them."""

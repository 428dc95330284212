"""Samples, shards and streams: everything between files on disk and a `Batch`."""

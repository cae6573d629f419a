"""Streams of training batches, and the buffers they read from."""

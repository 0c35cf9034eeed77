"""Benchmarks, asked of a checkpoint or of running replicas, and what came of it."""

"""Weights on the wire: what the learner's `publishing` sends and a replica's worker receives."""

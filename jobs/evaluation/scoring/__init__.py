"""Scores of predictions under the protocols of the field; no model, no GPU."""

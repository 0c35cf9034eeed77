"""Annotation files of every published schema → `Annotation` records, one at a time."""

"""Weights out: `snapshot` (what travels) → `delivery` (to whom) → `publisher` (when)."""

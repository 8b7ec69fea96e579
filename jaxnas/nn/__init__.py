"""Flax modules: operations, cells, whole networks."""

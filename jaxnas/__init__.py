"""Neural architecture search as pure JAX functions."""

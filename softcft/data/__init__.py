"""Data sets and the bridge from their columns to a causal graph."""

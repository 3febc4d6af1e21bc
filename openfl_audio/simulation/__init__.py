"""Experiments with many clients in one process or on a Ray cluster, without a network."""

"""Subjects of benchmarks/rounds.py: the workloads, and one module for each engine that carries them."""

"""What benchmarks/rounds.py measures: the workloads, and one module for each engine that carries them."""

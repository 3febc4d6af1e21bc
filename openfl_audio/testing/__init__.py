"""Helpers of tests, demos and benchmarks: corpora that are made on the spot, and a proxy that breaks connections."""

"""What tests, demos and benchmarks need: corpora that are made on the spot, and a proxy that breaks connections."""

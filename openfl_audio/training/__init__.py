"""The kit that workloads are built from."""

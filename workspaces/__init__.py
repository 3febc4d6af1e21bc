"""What travels with an experiment, one package per workload."""

"""Runs of a workload in four modes (centralized, individual, simulated, federated), searches and comparisons."""

"""Packages that are sent along with an experiment, one per workload."""

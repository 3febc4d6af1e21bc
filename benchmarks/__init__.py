"""Measurements: the cost of a round, a simulation, a preparation or a training step, some beside others' code."""

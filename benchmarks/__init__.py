"""What a round, a simulation, a preparation or a training step costs, some of it beside others' code."""

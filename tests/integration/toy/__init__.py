"""The smallest experiment: a line through points. It makes the runtime's work visible in numbers known beforehand."""

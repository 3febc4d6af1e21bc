"""The node side of the federation."""

"""The server side of the federation."""

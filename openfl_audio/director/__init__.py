"""The server: it admits envoys, runs rounds and keeps their models."""

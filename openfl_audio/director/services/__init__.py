"""The gRPC services that share the port of a director."""

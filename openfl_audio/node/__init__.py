"""Parts that run where the recordings are, in a worker of an envoy and in a simulated client alike."""

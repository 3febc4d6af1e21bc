"""The process of a node: it serves a shard and runs the tasks of an experiment in a worker."""

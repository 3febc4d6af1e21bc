"""Shard descriptors: a corpus on disk in its published layout -> the part of it that one node trains on."""

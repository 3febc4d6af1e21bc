"""Codebooks for HuBERT: k-means of frames, on one node or over a federation, and the targets that follow."""

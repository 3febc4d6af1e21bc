"""What `scripts/train.py` does: one experiment in any of four modes."""

"""What director, envoys and notebooks share."""

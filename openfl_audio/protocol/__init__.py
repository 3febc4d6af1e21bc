"""What crosses the wire between director, envoys and notebooks, and how a round is counted; without torch."""

"""Messages between director, envoys and notebooks, and the bookkeeping of a round; without torch."""

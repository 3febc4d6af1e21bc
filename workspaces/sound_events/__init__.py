"""Sound events: clips of any length, several of FSD50K's classes each."""

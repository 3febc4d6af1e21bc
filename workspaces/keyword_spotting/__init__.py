"""Keyword spotting: one second of speech, one of twelve labels."""

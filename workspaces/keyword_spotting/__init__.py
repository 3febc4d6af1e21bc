"""Keyword spotting with a head on an encoder of speech, Whisper or another: one second, one of twelve labels."""

"""Keyword spotting by fine-tuning Wav2Vec2: one second of speech, one of twelve labels."""

"""Speech recognition: utterances to letters, by CTC."""

"""Speech recognition: utterances to letters by CTC, or to words by Whisper."""

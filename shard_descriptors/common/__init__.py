"""What corpora have in common: audio, partitions, files, texts and errors."""

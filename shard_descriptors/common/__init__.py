"""The common part of all corpora: audio, partitions, files, texts and errors."""

"""LibriSpeech by speaker: whole utterances, with transcripts and targets of HuBERT."""

from shard_descriptors.librispeech.shard import LibriSpeechShardDescriptor

__all__ = ["LibriSpeechShardDescriptor"]

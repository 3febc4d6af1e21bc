"""Workloads that there are, and settings of the smallest models, for the tests of several workloads."""

WORKLOADS = {
    "audio_classification",
    "hubert",
    "hubert_distillation",
    "keyword_spotting",
    "keyword_spotting_wav2vec2",
    "sound_events",
    "speech_enhancement",
    "speech_recognition",
}
TINY_WAV2VEC2 = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [16],
    "conv_kernel": [64], "conv_stride": [32], "num_feat_extract_layers": 1, "classifier_proj_size": 8,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False,
}  # fmt: skip
TINY_SPECTROGRAM_TRANSFORMER = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip

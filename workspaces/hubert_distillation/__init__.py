"""Distillation of HuBERT: a student of a fraction of the size learns the outputs of a trained teacher."""

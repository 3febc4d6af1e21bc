"""HuBERT: self-supervised speech representations, by predicting the k-means cluster of masked frames."""

"""Small corpora of synthetic audio in the layouts of published ones, made on the spot, without a download."""

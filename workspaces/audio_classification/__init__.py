"""Classification of recordings of a site's own: one label, several labels, or a number, by any classifier of audio."""

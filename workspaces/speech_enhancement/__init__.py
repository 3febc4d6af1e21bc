"""Speech enhancement: the speech in noisy recordings, learnt with clean references or without any."""

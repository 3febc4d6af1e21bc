"""The interactive API: define an experiment, start it on a director and watch it."""

"""`pixelkit tune`: short trainings of a preset with other settings, and the fastest kept for the next run."""

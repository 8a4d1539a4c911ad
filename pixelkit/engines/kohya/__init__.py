"""kohya sd-scripts as an engine."""

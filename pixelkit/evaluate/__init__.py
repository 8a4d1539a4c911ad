"""Measures and pictures of what a training did: palette, contact sheet, loss curve. No weights needed, no torch."""

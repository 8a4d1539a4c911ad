"""The sprites on their way to the engine: looked at, captioned, prepared to the pixel, checked."""

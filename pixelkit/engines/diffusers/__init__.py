"""pixelkit's own trainer on diffusers and peft."""

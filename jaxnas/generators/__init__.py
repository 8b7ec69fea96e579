"""Models that generate: images, and architectures."""

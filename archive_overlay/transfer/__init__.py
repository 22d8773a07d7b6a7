"""Carrying images: from a layout into an engine's store, to a registry, and from there."""

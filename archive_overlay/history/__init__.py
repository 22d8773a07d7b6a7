"""What the layers of an image mean: revisions."""

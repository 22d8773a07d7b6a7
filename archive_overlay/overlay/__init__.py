"""Reading: from a mount to the changes that its upperdir holds."""

"""What the kernel offers, and the standard library does not have or takes too long for."""

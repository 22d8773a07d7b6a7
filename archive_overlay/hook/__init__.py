"""What happens when a container stops."""

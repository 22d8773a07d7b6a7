"""archive_overlay: save what a container changed in its overlay mounts."""

__version__ = "3.1.0"

"""`archive_overlay snapshot`: what a running container asks for, made now."""

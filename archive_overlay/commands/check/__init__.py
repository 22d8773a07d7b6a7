"""`archive_overlay check`: whether this host is set up."""

"""What `archive_overlay apply` does: a change set carried out on a plain directory."""

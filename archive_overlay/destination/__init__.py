"""Where an archive becomes visible: whole, durable, and only then with a marker."""

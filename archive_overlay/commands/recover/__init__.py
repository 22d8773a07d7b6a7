"""`archive_overlay recover`: what containers asked for whose hook the engine has not run, because the host went down."""

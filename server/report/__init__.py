"""Report: one file that a data protection officer can read offline."""

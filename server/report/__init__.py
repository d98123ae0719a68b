"""Report: a finished run as one page for people, one file for programs, and one table for the terminal."""

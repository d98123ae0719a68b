"""Data sets: generated ones, and public sources turned into site folders."""

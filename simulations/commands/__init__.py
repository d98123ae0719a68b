"""Commands: what motet.py offers, where one file would not hold it; nothing heavy is imported before a command runs."""

"""Version: the one place where it stands; pyproject.toml reads it from here, and bundles carry it along."""

VERSION = "0.1.0"

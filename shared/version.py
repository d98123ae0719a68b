"""Version: what reports and bundles say; pyproject.toml states it again for Flower, and a test compares the two."""

VERSION = "0.4.0"

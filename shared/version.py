"""Version: what reports and bundles say; pyproject.toml states it again for Flower, and a test compares the two."""

VERSION = "0.5.0"


def release_of(version: str) -> str:
    """What server and sites must have in common, such as "0.4"; patches of one release work together."""
    return ".".join(version.split(".")[:2])

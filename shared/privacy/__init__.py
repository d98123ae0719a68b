"""Privacy: mechanisms and the arithmetic of what they reveal."""

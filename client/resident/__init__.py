"""Resident: the site agent as a process of the owner's, and the way to it over a socket on the owner's machine."""

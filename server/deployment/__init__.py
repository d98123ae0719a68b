"""Deployment: the server of a federation over a network, from an empty folder to runs that are watched."""

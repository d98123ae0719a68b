"""Engines: what carries messages between the server app and the client app."""

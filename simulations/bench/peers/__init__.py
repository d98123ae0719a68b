"""Peers: other frameworks at the common job, each a small program for an environment of its own.

in        an environment that setup.py made
out       a line of times, as clock.py writes it
relies on nothing of Motet but clock.py, which needs the standard library alone
"""

"""Whoever owns the data: protected training and the ledger in front of it."""

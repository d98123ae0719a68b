"""Whole runs, both sides: the engines, the app bundle, a deployment of real processes."""

"""Simulated sites that mean harm, to see what a run bears."""

"""Preflight: what one check of the training code found; the checks themselves are client/preflight/.

in        nothing
out       PreflightCheck, made at a site or before a simulation, shown on the terminal and in the report
relies on nothing private: checks run on random batches
"""

from shared.settings import Settings


class PreflightCheck(Settings):
    """One check of the training code on random batches, before private data is touched."""

    name: str
    passed: bool
    detail: str
    """what was measured, against what; one sentence"""

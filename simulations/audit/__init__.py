"""Audit: attacks on the training code, and what they prove about its epsilon."""

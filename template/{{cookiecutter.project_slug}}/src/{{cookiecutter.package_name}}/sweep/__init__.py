"""Sweeps: many training runs, each in a process of its own, that look for good settings."""

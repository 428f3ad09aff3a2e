"""Doing many runs: which are left, what they cost, on which processes; and settings from the command line."""

"""Rewards of completions, by name.

May import datasets and worlds. A change here keeps: a gold answer earns 1 for itself.
"""

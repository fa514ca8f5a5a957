"""Worlds made on the spot: arithmetic problems, regimes that spoil a pool, and the tiny models that are taught in them.

May import `problems`. A change here keeps problems and models the same for a seed.
"""

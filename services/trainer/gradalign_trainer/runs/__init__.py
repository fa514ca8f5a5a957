"""Whole runs: their data and model, the loop, checkpoints, and several runs at a time.

May import every room below. A change here keeps: a resumed run goes on bit for bit.
"""

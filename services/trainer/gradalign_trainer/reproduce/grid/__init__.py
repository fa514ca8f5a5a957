"""The grid that is played: its cells, methods, workers, times and results.

May import runs and worlds. A change here keeps finished cells in `results.jsonl` valid.
"""

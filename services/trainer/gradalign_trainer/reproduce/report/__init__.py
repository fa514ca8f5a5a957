"""What a grid found: readings of its curves, tables and pictures.

May import the grid. A change here keeps every published figure derivable from `results.jsonl`.
"""

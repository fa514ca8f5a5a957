"""What a run shows while it goes and leaves behind: progress, metrics, plots.

May import `records`. A change here keeps the names in `metrics.jsonl`.
"""

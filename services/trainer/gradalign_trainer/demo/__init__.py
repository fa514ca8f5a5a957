"""`gradalign demo`: two regimes, chosen at random and by alignment, and one picture.

May import runs. A change here keeps it a minute on two cores.
"""

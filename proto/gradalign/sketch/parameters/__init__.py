"""Which parameters a model has and which part of each a rank holds: names, coverage, shards.

May import the kernels' hash tables and the wire. A change here keeps names equal under any wrapping, and
sums over ranks equal to the whole.
"""

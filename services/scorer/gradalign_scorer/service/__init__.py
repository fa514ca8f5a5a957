"""The requests that change a run, and what is told of runs: load, check, compute, commit, reply.

May import ranking, store, http and telemetry. A change here keeps: nothing of a refused request is stored.
"""

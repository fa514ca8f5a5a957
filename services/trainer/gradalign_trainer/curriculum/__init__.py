"""The trainer's side of the scorer: what is measured, sent and asked for, and how a run goes on without an answer.

May import `gradalign` alone. A change here keeps: a scorer that is away never stops a run.
"""

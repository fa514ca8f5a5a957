"""A Valkey server of the scorer's own, for machines without a Redis.

May import nothing of the scorer. A change here keeps the data folder readable, and one process to a folder.
"""

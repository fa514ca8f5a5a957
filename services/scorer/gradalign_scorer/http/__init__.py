"""A request before it means anything: its connection, limits, admission and body, and the encoding of its reply.

May import the settings. A change here keeps every limit checked before the memory is taken.
"""

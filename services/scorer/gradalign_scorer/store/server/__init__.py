"""The server or servers behind the store: redis-py's clients of them, what they say of themselves, and their failures.

May import nothing of the scorer but its base. A change here keeps what may have run from being sent again unasked.
"""

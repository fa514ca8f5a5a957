"""Beliefs about success rates, kept from pass rates alone, and the draws that `/select` picks by.

May import nothing of the scorer. A change here keeps: a belief does not depend on the order in which the problems of a
request come, and a draw depends on its seed and the state alone.
"""

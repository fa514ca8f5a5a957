"""How a capture meets each operation that uses a parameter: which calls it intercepts, and what autograd records of them.

May import the rows. A change here keeps forward values, and `.grad` where it is asked for, as they are without a capture.
"""

"""Sketches of one gradient: of a matrix, of the factors of a sum of outer products, in floating or fixed point.

May import the kernels. A change here keeps linearity and the golden sketches.
"""

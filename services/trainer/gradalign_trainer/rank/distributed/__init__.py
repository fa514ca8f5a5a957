"""A ranking shared by many workers: actors of Ray, or the ranks of torchrun.

May import the steps of a ranking. A change here keeps the files of the plain command to the byte, whatever dies on the way.
"""

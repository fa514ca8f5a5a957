"""`gradalign rank`: the reference implementation's files in, its files out, with this project's gradients and scorer.

May import its steps, and the workers that share them. A change here keeps the plain command's files to the byte.
"""

"""What happens inside `Sketcher.capture`: the gradients of all problems of a batch out of one backward.

May import the rest of the sketch but the Sketcher. A change here keeps the law: equal to one backward a problem, or refused.
"""

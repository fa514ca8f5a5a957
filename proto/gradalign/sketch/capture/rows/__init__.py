"""Which problem each row of an activation belongs to, followed through the operations of a model.

May import `gradalign.errors` alone. A change here keeps the law: what is not known to keep rows apart is refused.
"""

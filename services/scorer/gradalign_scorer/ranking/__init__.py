"""From sketches to a ranking: products, strategies, weights, selection. Pure computation, without state, input or output.

May import the wire. A change here keeps the method: bit-identical, or a
measured curve in docs/experiments.md.
"""

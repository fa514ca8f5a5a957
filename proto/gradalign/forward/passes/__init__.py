"""Slopes of log-probs along a direction: by differences, by forward-mode differentiation, in which precision, at which step.

May import the parameters. A change here keeps products equal to exact ones, or the self-check saying that they are not.
"""

"""The policy: its updates, and its gradients as what the scorer takes, sketches by backwards or products by forwards.

May import grpo, the configuration and the curriculum's messages. A change here keeps one gradient a problem, whatever the
batch, and nothing in `.grad` that was not asked for.
"""

"""The policy and what GRPO does with it: rollouts, advantages, loss, gradients, updates, evaluation.

May import the configuration and the curriculum's messages. A change here keeps the paper's
gradient: one token mean a problem.
"""

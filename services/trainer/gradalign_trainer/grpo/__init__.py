"""What GRPO does with a model: rollouts, advantages, the loss, evaluation; and features of prompts.

May import the problems. A change here keeps the paper's gradient: one token mean a problem.
"""

"""GradAlign in other people's trainers, one package each; `base` is what they share of the conversation with the scorer.

May import the curriculum and datasets. A change here keeps: training is never stopped by us.
"""

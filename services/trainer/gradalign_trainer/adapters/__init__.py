"""GradAlign in other people's trainers, one package each.

May import the curriculum and datasets. A change here keeps: training is never stopped by us.
"""

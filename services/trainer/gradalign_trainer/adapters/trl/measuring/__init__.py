"""What the scorer gets of a generation batch: sketches of its groups, or products of its rollouts.

May import the curriculum, the sketch and forward. A change here keeps: `.grad`, the weights and the random numbers are
afterwards what they were, and every process makes the same collective calls.
"""

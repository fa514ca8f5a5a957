"""What is stored of runs, problems and validation gradients, and how it is packed.

May import the wire. A change here keeps older records readable.
"""

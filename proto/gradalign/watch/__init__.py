"""Commands that look at running scorers: `gradalign status` and `gradalign top`.

May import the client and the wire. A change here keeps the exit codes and the lines that scripts read.
"""

"""The inner loops of the sketch: compiled for the CPU by numba, for GPUs by triton, and who picks between them.

May import the wire's layout. A change here keeps every loop equal to `gradalign.wire.countsketch`.
"""

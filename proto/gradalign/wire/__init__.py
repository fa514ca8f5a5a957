"""The wire: requests, replies, their bytes, and the sketch layout in numpy. Specified in proto/README.md.

May import `gradalign.errors` alone. A change here keeps the golden vectors and the bytes of older clients.
"""

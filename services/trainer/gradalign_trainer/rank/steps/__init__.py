"""The steps of a ranking: read responses, take gradients, keep them, have them scored, write files.

May import grpo, datasets and the curriculum. A change here keeps the reference's files, and the same bytes after a resume.
"""

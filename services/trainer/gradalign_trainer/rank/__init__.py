"""`gradalign rank`: the reference implementation's files in, its files out, with this project's gradients and scorer.

May import grpo, datasets and the curriculum. A change here keeps the reference's files, and the same bytes after a resume.
"""

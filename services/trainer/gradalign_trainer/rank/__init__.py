"""`gradalign rank`: the reference implementation's files in, its files out, with this project's gradients and scorer."""

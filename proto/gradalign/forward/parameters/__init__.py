"""What a direction moves: a model's parameters or an engine's shards, the validation gradient beside them, and back again.

May import the sketch's parameters. A change here keeps the law: every bit of every weight comes back.
"""

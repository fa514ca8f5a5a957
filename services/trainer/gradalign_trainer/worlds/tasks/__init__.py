"""Worlds of tasks in words, for pretrained models (word problems, `reasoning_gym`, a folder of files), and worlds by name.

May import the other worlds, sources and records of data. A change here keeps problems the same for a seed.
"""

"""Worlds of tasks in words, for pretrained models: word problems of our own, tasks of `reasoning_gym`, a folder of files.

May import sources and records of data. A change here keeps problems the same for a seed.
"""

"""The settings of a run, and the TOML files they come from.

May import datasets, rewards and reporting, whose settings these hold. A change here keeps older files valid.
"""

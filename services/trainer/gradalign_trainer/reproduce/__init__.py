"""The paper's claims measured: every method in every regime over several seeds, at equal cost three ways.

`gradalign reproduce` runs it: `grid` plays the cells, `results` keeps them, `readings` reads their curves at equal
updates, rollouts and seconds, `tables` and `pictures` show them.

May import its grid and its report. A change here keeps finished cells valid.
"""

"""Where records come from: files, archives, the hub, generated tasks.

May import the records. A change here keeps: a bad record is named by file and line.
"""

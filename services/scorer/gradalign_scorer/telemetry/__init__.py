"""What a scorer tells its operators: metrics, logs and traces.

May import the http room, the store and the settings. A change here keeps the names that alerts and dashboards use.
"""

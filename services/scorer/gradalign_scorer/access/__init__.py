"""Who may ask for what: API keys, their scopes and their file, and TLS.

May import the http room and the settings. A change here keeps every route behind the key, by default.
"""

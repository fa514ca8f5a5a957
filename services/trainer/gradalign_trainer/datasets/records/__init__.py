"""What a record must hold to be a problem: its schema, its id, its chat.

May import `problems` and the settings. A change here keeps older files valid, and the ids made from content.
"""

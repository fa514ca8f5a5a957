"""The client of the scorer, blocking and asynchronous.

May import the wire. A change here keeps both clients the same in everything but `await`, and retries applied once.
"""

from gradalign.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]

"""The venue, and only here: its WebSocket, its REST interface, its formats and limits."""

"""The door: sockets, the wire, encoding, and the loop that drives the game."""

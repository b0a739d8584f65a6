"""The market that the simulator plays, and its trades. Pure."""

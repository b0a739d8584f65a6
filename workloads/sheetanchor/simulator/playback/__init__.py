"""The market that the simulator plays, and what has been traded. Pure."""

"""A pipeline's status: its problems, conditions and Events. Pure."""

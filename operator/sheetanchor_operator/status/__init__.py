"""A pipeline's status: what is wrong, its conditions, its Events. Pure."""

"""Judging zones, in every replica of the operator: the rounds of questions, and what follows from them."""

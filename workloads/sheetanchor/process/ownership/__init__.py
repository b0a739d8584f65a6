"""Which processor of a symbol writes, and what it does when Redis has lost writes that it had acknowledged."""

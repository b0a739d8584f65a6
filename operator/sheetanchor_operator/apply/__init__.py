"""Whether, when and in which order objects may be written. Pure."""

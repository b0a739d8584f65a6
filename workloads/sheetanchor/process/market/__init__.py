"""What a processor knows of one symbol and how it is judged. Pure: no I/O, time is an argument."""

"""What a processor knows of one symbol, how it is judged, what is written of it and when. Pure: time is an argument."""

"""The venue Binance, and nothing else knows it: its WebSocket, REST interface, formats and limits."""

"""The agent's local API: Open Inference Protocol v2 over HTTP and WebSocket. Loaded when it is configured."""

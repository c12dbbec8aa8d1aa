"""Runs models: the worker process, the engine in front of it, and the router between nodes."""

"""`shoal-broker doctor`: does a given broker keep the promises that Shoal builds on?

Synchronous, one-shot probes with paho-mqtt on purpose: they must not share code with the session
whose behaviour they explain. Whatever a probe leaves on the broker it takes away again.
"""

"""The bridge to an upstream broker: two sessions back to back, one of them inside this process.

`table` is its configuration, `routes` where a topic goes, `hops` what has gone round already, `inside`
the way to our own core, `bridge` the thing itself. It keeps nothing on its own: what waits is in the
session's outbox, or in the queue that the core keeps for the bridge as for any client.
"""

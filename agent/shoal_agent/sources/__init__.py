"""Where chunks of blobs come from beside the broker: neighbours, and web servers. Nobody is trusted: chunks are hashed."""

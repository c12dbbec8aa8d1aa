"""The agent's own update: a signed release tree is unpacked, switched to, watched, and left again if it does not do well."""

"""What both ends agree on: topics, messages, CBOR, device frames, release manifests.

Pure bytes <-> values. No I/O, no event loop, no clock, no logging.
"""

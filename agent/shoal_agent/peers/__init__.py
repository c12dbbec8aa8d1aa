"""Neighbours: finding them by mDNS and talking to them over TCP. No mTLS yet (docs/peers.md)."""

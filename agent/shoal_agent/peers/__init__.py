"""Neighbours: finding them by mDNS and talking to them over TCP. With mutual TLS where the board has an identity."""

"""`shoal demo`: a small fleet on this machine, real processes throughout, from nothing to a table of facts.

It starts the programs that a fleet is made of and operates them from outside, as a person would; it
imports none of the roles that it shows.
"""

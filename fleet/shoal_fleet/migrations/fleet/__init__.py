"""Revisions of the tables of `FleetBase`, one file each; the newest one is what the code needs."""

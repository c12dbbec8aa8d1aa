"""Revisions of the tables of `ReadingsBase`."""

"""The way from any older version of the tables to today's: one Alembic revision a step. `shoal_fleet.schema` walks it."""

"""What Alembic runs around the revisions. The connection and its transaction belong to `shoal_fleet.schema`."""

from alembic import context

from shoal_fleet.schema import VERSION_TABLES

given = context.config.attributes
context.configure(
    connection=given["connection"],
    target_metadata=given["metadata"],
    version_table=VERSION_TABLES[given["metadata"]],
    # SQLite changes no column in place: the table is made anew and filled.
    render_as_batch=True,
)
context.run_migrations()

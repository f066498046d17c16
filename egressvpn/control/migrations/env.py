"""Run by alembic: migrates on the connection, and in the transaction, that `upgrade` was given."""

from alembic import context

from egressvpn.control.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

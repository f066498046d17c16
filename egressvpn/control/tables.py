"""The tables of the store, as SQLAlchemy Core sees them. `migrations/versions` makes them; a test holds the two together."""

import sqlalchemy as sa

metadata = sa.MetaData()

device = sa.Table(
    "device",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("pool", sa.Text, nullable=False),
    sa.Column("created_at", sa.Integer, nullable=False),  # s since the epoch
    sqlite_autoincrement=True,  # a removed device's id never comes back: logs speak of it for years
)

device_key = sa.Table(
    "device_key",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("public_key", sa.Text, nullable=False, unique=True),
    sa.Column("preshared_key", sa.Text, nullable=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.CheckConstraint("state IN ('pending', 'active', 'retiring', 'revoked')", name="device_key_state"),
    sa.Index("device_key_one_active", "device_id", unique=True, sqlite_where=sa.text("state = 'active'")),
)

device_address = sa.Table(
    "device_address",
    metadata,
    sa.Column("address", sa.Text, primary_key=True),
    sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),  # the order of tunnel.networks
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
    sa.CheckConstraint("id = 1", name="revision_one_row"),
)

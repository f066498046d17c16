"""The tables of the store, as SQLAlchemy Core sees them. `migrations/versions` makes them; a test holds the two together.

`changed` of a device is the revision of its last change, and `removed_device` keeps the ids of those that are gone with the
revision of their removal: together the feed that a running gateway follows.
"""

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
    sa.Column("persistent_keepalive", sa.Integer, nullable=False, server_default=sa.text("0")),  # s, 0: off
    sa.Column("endpoint", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("changed", sa.Integer, nullable=False, server_default=sa.text("0"), index=True),  # revision of its last change
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
    sa.Column("newest_timestamp", sa.LargeBinary, nullable=True),  # TAI64N of the newest initiation received, to refuse replays
    sa.CheckConstraint("state IN ('pending', 'active', 'retiring', 'revoked')", name="device_key_state"),
    sa.Index(
        "device_key_one_active",
        "device_id",
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    ),
)

allowed_ip = sa.Table(
    "allowed_ip",
    metadata,
    sa.Column("network", sa.Text, primary_key=True),  # "100.64.0.2/32": one owner each
    sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),  # the order in which they were given
)

removed_device = sa.Table(
    "removed_device",
    metadata,
    sa.Column("device_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.Integer, nullable=False, index=True),
)

setting = sa.Table(
    "setting",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
    sa.CheckConstraint("id = 1", name="revision_one_row"),
)

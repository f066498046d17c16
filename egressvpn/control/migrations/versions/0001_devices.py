"""Devices, their keys and addresses, and the revision."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "device",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "device_key",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("public_key", sa.Text, nullable=False, unique=True),
        sa.Column("preshared_key", sa.Text, nullable=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.CheckConstraint("state IN ('pending', 'active', 'retiring', 'revoked')", name="device_key_state"),
    )
    op.create_index(
        "device_key_one_active",
        "device_key",
        ["device_id"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "device_address",
        sa.Column("address", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("position", sa.Integer, nullable=False),
    )
    store_revision = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
        sa.CheckConstraint("id = 1", name="revision_one_row"),
    )
    op.bulk_insert(store_revision, [{"id": 1, "value": 0}])


def downgrade() -> None:
    for table in ("revision", "device_address", "device_key", "device"):
        op.drop_table(table)

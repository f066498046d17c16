"""Allowed networks in place of addresses, endpoint and keepalive of a device, the feed of changes, settings."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("device", sa.Column("persistent_keepalive", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("device", sa.Column("endpoint", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("device", sa.Column("changed", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.create_index("ix_device_changed", "device", ["changed"])
    op.execute("UPDATE device SET changed = (SELECT value FROM revision)")
    op.add_column("device_key", sa.Column("newest_timestamp", sa.LargeBinary, nullable=True))
    op.create_table(
        "allowed_ip",
        sa.Column("network", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("position", sa.Integer, nullable=False),
    )
    op.execute(
        "INSERT INTO allowed_ip (network, device_id, position) SELECT address || CASE WHEN address LIKE '%:%' THEN '/128' ELSE '/32' END,"
        " device_id, position FROM device_address"
    )
    op.drop_table("device_address")
    op.create_table(
        "removed_device",
        sa.Column("device_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.Integer, nullable=False, index=True),
    )
    op.create_table("setting", sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False))

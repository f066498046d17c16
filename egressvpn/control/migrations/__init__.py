"""The store's history, run by alembic from the program itself: no alembic.ini, no command line."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def head() -> str | None:
    """The newest schema."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def known(schema: str | None) -> bool:
    """Whether this program knows how to get on from there. None is a new store."""
    return schema is None or schema in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables to the head, inside the caller's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

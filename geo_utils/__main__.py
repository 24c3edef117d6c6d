"""`python -m geo_utils`, the same as `geo`."""

from geo_utils.cli import app

app(prog_name="geo")

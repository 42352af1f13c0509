"""Registered tables: what a team declares at run time, how a row of one becomes a record, and who knows them all."""

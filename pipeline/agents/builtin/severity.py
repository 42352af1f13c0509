"""Drops log records below a severity, for good: what a gateway does while its spool is nearly full, as a filter.

    [agents.severity]
    at_least = "INFO"                   # TRACE, DEBUG, INFO, WARN (default), ERROR or FATAL

    [agents.severity.services]
    checkout = "DEBUG"                  # another one for a service

Reads `logs_raw`, writes `logs_norm`. A record without a severity number stays, since it may be an error, and so does
one with an event name. Dropped records are counted by the reason `below WARN` and stay accounted for in the audit.
"""

from typing import Literal

from pydantic import BaseModel

from pipeline.agents import Context, Drop, LogRecord, agent, drop

Severity = Literal["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"]
FIRST: dict[Severity, int] = {"TRACE": 1, "DEBUG": 5, "INFO": 9, "WARN": 13, "ERROR": 17, "FATAL": 21}


class Settings(BaseModel):
    at_least: Severity = "WARN"
    services: dict[str, Severity] = {}


@agent(reads="logs_raw", writes="logs_norm", version=1, settings=Settings)
def severity(record: LogRecord, context: Context[Settings, None]) -> LogRecord | Drop:
    at_least = context.settings.services.get(record.service, context.settings.at_least)
    if 0 < record.severity_number < FIRST[at_least] and not record.event_name:
        return drop(f"below {at_least}")
    return record

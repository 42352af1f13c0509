"""Three kinds of failure, three roots, three reactions.

    PipelineError
    ├── Rejected        the data's fault: dead-letter, 4xx or partial_success; never retried
    ├── Unavailable     the world's fault: retry in place, or answer "not now"
    └── Misconfigured   ours: exit 2 at start, every problem listed at once

A message is a sentence that names the thing and the way out. Foreign errors are translated into one of these at the
door (kafka, timescale, clickhouse); anything else that reaches a process's top is a bug and stops it.
"""


class PipelineError(Exception):
    """The root of all failures that this project expects."""


class Rejected(PipelineError):
    """The data cannot be accepted, now or later."""


class TooLarge(Rejected):
    """The data is over a stated limit; smaller pieces of it may be accepted."""


class Unavailable(PipelineError):
    """The world is away; the same call may succeed later."""


class Misconfigured(PipelineError):
    """Settings, files or command are wrong; `problems` holds one sentence each, all of them at once."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))

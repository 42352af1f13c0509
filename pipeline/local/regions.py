"""Several regions on this machine: a stack each, and MirrorMaker 2 where something is mirrored to."""

import contextlib
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

from pipeline import regions, topics
from pipeline.errors import Misconfigured
from pipeline.local.processes import Runner
from pipeline.local.servers import port_of
from pipeline.local.stack import MIRROR_MAKER, Mirror, Stack
from pipeline.regions import Topology, mirror_maker
from pipeline.settings import Settings

PORTS_APART = 1000  # what a region serves for itself, from the single stack and from each other
SEPARATOR = "/"


class Regions:
    """Stacks by region. Whoever changes one holds its lock, as of any stack.

    A region's Kafka and stores listen where the topology says, all else where `of` says.
    """

    def __init__(
        self,
        topology: Topology,
        own: Mapping[str, Settings],
        tell: Callable[[str], None],
        beside: Collection[str] = (),
    ) -> None:
        """`beside` are regions that run here too."""
        self.topology = topology
        self.settings = dict(own)
        self._here = {*own, *beside}
        self.stacks = {alias: Stack(each, _telling(tell, alias), self._mirror(alias)) for alias, each in own.items()}

    @classmethod
    def of(cls, base: Settings, aliases: Sequence[str], tell: Callable[[str], None]) -> Self:
        """Those regions of the topology, below the home of `base`; raises Misconfigured where there is no such."""
        topology = regions.load(base)
        unknown = [alias for alias in aliases if alias not in topology.regions]
        if unknown:
            known = ", ".join(topology.regions)
            raise Misconfigured(
                [f"There is no region {alias!r} in {base.topology}; there are {known}." for alias in unknown]
            )
        places = {alias: number for number, alias in enumerate(topology.regions, 1)}
        own = {alias: region_settings(base, topology, alias, places[alias]) for alias in aliases}
        return cls(topology, own, tell, [alias for alias in places if Runner(_home(base, alias)).find("kafka")])

    @classmethod
    def made(cls, base: Settings, tell: Callable[[str], None]) -> Self | None:
        """Those that `up` has made and nobody wiped; None where there are none."""
        homes = _home(base, "")
        aliases = [path.name for path in homes.iterdir() if path.is_dir()] if homes.is_dir() else []
        return cls.of(base, sorted(aliases), tell) if aliases else None

    def up(self) -> None:
        """Start what does not run: every region, then MirrorMaker between them, anew where a link was added."""
        started: list[tuple[Stack, list[str]]] = []
        try:
            for stack in self.stacks.values():
                missing = [row["name"] for row in stack.status()["processes"] if row["state"] == "stopped"]
                if missing:
                    started.append((stack, missing))
                    stack.up()
            for stack in self._mirrored_into():
                stack.mirror()
        except BaseException:
            for stack, missing in started:
                stack.stop(missing)
            raise

    def down(self) -> None:
        """Stop everything, MirrorMaker first."""
        for stack in self._mirrored_into():
            stack.stop([MIRROR_MAKER])
        for stack in self.stacks.values():
            stack.down()

    def wipe(self) -> None:
        """Stop everything and remove all data."""
        for stack in self._mirrored_into():
            stack.stop([MIRROR_MAKER])
        for alias, stack in self.stacks.items():
            stack.wipe()
            home = self.settings[alias].local.home
            (home / "lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's file in it
                home.rmdir()

    def status(self) -> dict[str, Any]:
        """By region, what `Stack.status` says of it."""
        return {alias: stack.status() for alias, stack in self.stacks.items()}

    def _mirrored_into(self) -> Iterator[Stack]:
        return (stack for stack in self.stacks.values() if MIRROR_MAKER in stack.names)

    def _mirror(self, alias: str) -> Mirror | None:
        """Links from regions that are here; a part of the topology may be up."""
        here = [link for link in self.topology.links_to(alias) if link.source in self._here]
        if not here:
            return None
        own = self.settings[alias]
        elsewhere = tuple(link for link in self.topology.links if link.target != alias)
        topology = self.topology.model_copy(update={"links": (*elsewhere, *here)})
        properties = mirror_maker.properties(
            topology,
            topics.load(own.topics_directory, environment=own.environment),
            alias,
            f"http://127.0.0.1:{own.local.mirror_maker_port}",
        )
        return Mirror(regions.mirrored(self.topology, own, alias), properties)


def region_settings(base: Settings, topology: Topology, alias: str, place: int) -> Settings:
    """Of the region that stands at `place` in the topology, from 1."""
    region, ports = topology.regions[alias], place * PORTS_APART
    home = _home(base, alias)

    def moved(part: Any, **changes: Any) -> Any:
        at = {
            name: getattr(part, name) + ports
            for name in type(part).model_fields
            if name.endswith("port") and getattr(part, name)
        }
        return part.model_copy(update={**at, **changes})

    return base.model_copy(
        update={
            "region": alias,
            "mirrored_regions": topology.mirrored_into(alias),
            "kafka": region.kafka,
            "postgres": region.postgres_settings,
            "clickhouse": region.clickhouse,
            "registry": moved(base.registry),
            "gateway": moved(base.gateway),
            "pg_writer": moved(base.pg_writer),
            "ch_writer": moved(base.ch_writer),
            "spool": base.spool.model_copy(update={"directory": home / "spool"}),
            "replay": base.replay.model_copy(
                update={"directory": home / "replay", "kafka_servers": _moved(base.replay.kafka_servers, ports)}
            ),
            "local": moved(base.local, home=home),
        }
    )


def _home(base: Settings, alias: str) -> pathlib.Path:
    return base.local.home / "regions" / alias


def _moved(server: str, ports: int) -> str:
    host = server.rpartition(":")[0]
    return f"{host}:{port_of(server, 'replay.kafka_servers') + ports}"


def _telling(tell: Callable[[str], None], alias: str) -> Callable[[str], None]:
    return lambda line: tell(f"{alias}{SEPARATOR}{line}")

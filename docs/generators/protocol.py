"""The wire protocol: its messages from their classes, and its state machines from the tables that they obey."""

import html
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import lockstep.common.statemachine.client as client
import lockstep.ps.coordinator.transitions as coordinator
import lockstep.ps.shard.state as shard
import lockstep.ps.shard_group.members as shard_group
import lockstep.worker.state as worker
from docs.generators.tables import code, comments_of, first_sentence, table
from lockstep.common.protocol import messages, shard_messages
from lockstep.common.protocol.codec import HEADER_LIMIT, ITEMS_LIMIT, MAY_CARRY_A_FRAME, WITH_AN_ARRAY
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Message


@dataclass(frozen=True)
class Machine:
    """One state machine."""

    title: str
    states: type[Enum]
    transitions: Any
    path: str


MACHINES = (
    Machine("The run, as the coordinator sees it", coordinator.RunPhase, coordinator.TRANSITIONS, "ps/coordinator"),
    Machine("A process that joins a server", client.ClientPhase, client.TRANSITIONS, "common/statemachine"),
    Machine("A worker in the run", worker.WorkerPhase, worker.TRANSITIONS, "worker"),
    Machine("A shard in the run", shard.ShardPhase, shard.TRANSITIONS, "ps/shard"),
    Machine("The shards of a run", shard_group.GroupPhase, shard_group.TRANSITIONS, "ps/shard_group"),
)


def state_machines() -> str:
    """Return a section for each state machine: its states, a drawing, and its table."""
    return "\n".join(map(_section, MACHINES))


def _section(machine: Machine) -> str:
    comments = comments_of(machine.states)
    rows = [[_state(state), comments.get(state.name, ""), _next(machine, state)] for state in machine.states]
    return (
        f"### {machine.title}\n\n{first_sentence(machine.states.__doc__)} The code is in `{machine.path}/`.\n\n"
        f"{table(('state', 'what it is', 'can become'), rows)}\n{drawing(machine)}\n"
    )


def _state(state: Enum) -> str:
    return f"*{state.value}*"


def _next(machine: Machine, state: Enum) -> str:
    found = {
        target for (source, _), targets in machine.transitions.items() if source is state for target in targets or ()
    }
    return ", ".join(_state(target) for target in machine.states if target in found - {state})


#: The tip of an arc.
TIP = (
    '<defs><marker id="{tip}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>'
)

#: Sizes of a drawing, in pixels.
WIDTH, HEIGHT, GAP, LIFT = 92, 40, 20, 22


def drawing(machine: Machine) -> str:
    """Return an SVG of the states in a row: arcs above lead forward, arcs below lead back. It needs no script."""
    states = list(machine.states)
    edges: dict[tuple[int, int], list[str]] = {}
    for (state, event), targets in machine.transitions.items():
        for target in targets or ():
            if target is not state:
                edges.setdefault((states.index(state), states.index(target)), []).append(event.__name__)
    above = _room(target - source for source, target in edges)
    width = len(states) * (WIDTH + GAP) + GAP
    height = above + HEIGHT + _room(source - target for source, target in edges)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" class="states" style="max-width: {width}px" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{html.escape(machine.title)}: states and transitions</title>",
        TIP.format(tip=_tip(machine)),
    ]
    parts += [_arc(source, target, events, above, _tip(machine)) for (source, target), events in edges.items()]
    parts += [_box(index, state, above) for index, state in enumerate(states)]
    # One line: an empty one would end the block of HTML.
    return "".join([*parts, "</svg>"])


def _room(distances: Iterable[int]) -> int:
    """Return the height that arcs over so many states take: a curve reaches three quarters of its lift."""
    return 12 + round(0.75 * _lift(max((0, *distances))))


def _lift(distance: int) -> float:
    return 1.3 * LIFT * distance


def _box(index: int, state: Enum, room: int) -> str:
    x = GAP + index * (WIDTH + GAP)
    words = str(state.value).split()
    half = (len(words) + 1) // 2 if len(str(state.value)) > 14 else len(words)
    lines = [" ".join(words[:half]), *([" ".join(words[half:])] if words[half:] else [])]
    first = room + HEIGHT / 2 + 4 - 7 * (len(lines) - 1)
    texts = [
        f'<text x="{x + WIDTH / 2}" y="{first + 14 * i}" text-anchor="middle">{html.escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    return f'<rect x="{x}" y="{room}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>{"".join(texts)}'


def _tip(machine: Machine) -> str:
    """Return the name of the tip: each drawing of a page has one with its own."""
    return f"tip-{machine.path.replace('/', '-')}"


def _arc(source: int, target: int, events: list[str], room: int, tip: str) -> str:
    """Return one arc; its title, which a browser shows above it, names the events."""
    is_forward = target > source
    shift = 12 if is_forward else -12
    start = GAP + source * (WIDTH + GAP) + WIDTH / 2 + shift
    end = GAP + target * (WIDTH + GAP) + WIDTH / 2 - shift
    y = room if is_forward else room + HEIGHT
    lift = _lift(abs(target - source))
    bend = y - lift if is_forward else y + lift
    title = html.escape(", ".join(events))
    return (
        f'<path d="M{start:g} {y} C{start:g} {bend:g} {end:g} {bend:g} {end:g} {y}" class="arc" '
        f'marker-end="url(#{tip})"><title>{title}</title></path>'
    )


#: A comment at the left margin of the modules of messages: what is sent in which direction.
_DIRECTION = re.compile(r"^# (\S.*)$", re.MULTILINE)


def wire_messages() -> str:
    """Return the messages in the order of their modules, as a table for each direction."""
    return "\n".join(
        f"### {direction}\n\n{table(('message', 'fields', 'what it is'), map(_message, kinds))}"
        for module in (messages, shard_messages)
        for direction, kinds in directions(module).items()
    )


def directions(module: Any) -> dict[str, list[type[Message]]]:
    """Return the messages of a module by the comment above them."""
    text = inspect.getsource(module)
    places = [(match.start(), match[1]) for match in _DIRECTION.finditer(text)]
    found: dict[str, list[type[Message]]] = {}
    for match in re.finditer(r"^class (?!NodeMessage)(\w+)\((?:Node)?Message, ", text, re.MULTILINE):
        kind = getattr(module, match[1])
        heading = [title for place, title in places if place < match.start()][-1]
        found.setdefault(heading, []).append(kind)
    return found


def _message(kind: type[Message]) -> list[str]:
    fields = [*kind.__struct_fields__, *(["one array"] if issubclass(kind, (WITH_AN_ARRAY, MAY_CARRY_A_FRAME)) else [])]
    return [code(kind.__struct_config__.tag), ", ".join(fields), first_sentence(kind.__doc__)]


def wire_limits() -> str:
    """Return the version and the limits of the wire format."""
    return table(
        ("what", "value"),
        [
            ["version of the protocol", str(PROTOCOL_VERSION)],
            ["bytes of a header", f"at most {HEADER_LIMIT:,}"],
            ["elements of a list or table in a header", f"at most {ITEMS_LIMIT:,}"],
            ["arrays behind a header", "at most 1"],
        ],
    )

"""What a plan says of a model's layers, and the plan that says what a search has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from bitgate.catalog import ENDS, Plan, Rule, part_of
from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.selection import block_of, refuse_globs_for_nothing
from bitgate.quantize.shapes import LinearShape, ModelShapes


class Widths(NamedTuple):
    """What a layer gets."""

    bits: int
    group_size: int


def widths(plan: Plan, shapes: ModelShapes) -> dict[str, Widths]:
    """The layers of a model that a plan quantizes, in the model's order, the head last.

    Raises:
        QuantizeError: if a rule matches nothing, or nothing is left to quantize; it names file,
            plan, rule and key.
    """
    layers = {s.name: Widths(plan.bits, plan.group_size) for s in shapes.linears}
    layers.pop(shapes.head or "", None)
    kept: set[str] = set()
    for number, rule in enumerate(plan.rules, 1):
        for name in matches(rule, shapes, f"{plan.place}: rule {number}"):
            kept -= {name}
            if rule.keep:
                kept |= {name}
            old = layers[name]
            layers[name] = Widths(rule.bits or old.bits, rule.group_size or old.group_size)
    found = {name: widths for name, widths in layers.items() if name not in kept}
    if plan.head is not None:
        if shapes.head is None:
            raise QuantizeError(f"{plan.place}: head: the model has no linear output head")
        found[shapes.head] = Widths(plan.head, plan.group_size)
    if not found:
        raise QuantizeError(f"{plan.place}: rules: they leave every layer unquantized")
    return found


def matches(rule: Rule, shapes: ModelShapes, where: str) -> tuple[str, ...]:
    """The layers, without the head, that a rule is for.

    Raises:
        QuantizeError: if there are none.
    """
    linears = shapes.select(("*",))
    chosen = {linear.name for linear in linears}
    if rule.layers is not None:
        found = shapes.select(rule.layers)
        refuse_globs_for_nothing(rule.layers, found, shapes, where)
        chosen &= {linear.name for linear in found}
    if rule.part is not None:
        of_part = {linear.name for linear in linears if part_in_block(linear.name) == rule.part}
        if not of_part:
            raise QuantizeError(f"{where}: part: no linear layer of a block is {rule.part}")
        chosen &= of_part
    if rule.blocks is not None:
        blocks = blocks_of(linears)
        wanted = {
            blocks[at] for position in rule.blocks for at in _block_numbers(position, blocks, where)
        }
        chosen &= {linear.name for linear in linears if block_of(linear.name) in wanted}
    if not chosen:
        given = " and ".join(k for k in ("layers", "part", "blocks") if getattr(rule, k))
        raise QuantizeError(f"{where}: {given}: no layer is in all of them")
    return tuple(linear.name for linear in linears if linear.name in chosen)


def blocks_of(linears: Iterable[LinearShape]) -> list[str]:
    """A model's repeated blocks by name, in order."""
    return list(dict.fromkeys(filter(None, (block_of(linear.name) for linear in linears))))


def part_in_block(name: str) -> Literal["attention", "mlp"] | None:
    """What a linear layer of a block belongs to: the attention, or else the MLP; None outside."""
    block = block_of(name)
    if block is None:
        return None
    return "attention" if "att" in name.removeprefix(block) else "mlp"


def _block_numbers(position: int | str, blocks: list[str], where: str) -> range:
    count = len(blocks)
    position = ENDS.get(position, position) if isinstance(position, str) else position
    if isinstance(position, int):
        if -count <= position < count:
            return range(position % count, position % count + 1)
    else:
        first, last, of = part_of(position)
        if found := range((first - 1) * count // of, last * count // of):
            return found
    raise QuantizeError(f"{where}: blocks: {position!r} is none of the model's {count} blocks")


# --- what a search chooses among -------------------------------------------------------------

HEAD = "head"  #: the unit that is the output head


def units(shapes: ModelShapes, slices: int) -> dict[str, Rule]:
    """Groups of layers that share their bits, by name: layers of one kind (`self_attn.q_proj`) in
    one of so many slices of the blocks. The rules' bits have yet to be set.

    Positions and not numbers, so that what is found holds for a model of another depth too.
    """
    linears = shapes.select(("*",))
    count = len(blocks_of(linears))
    slices = min(slices, count)
    kinds = dict.fromkeys(
        linear.name.removeprefix(f"{block}.")
        for linear in linears
        if (block := block_of(linear.name)) is not None
    )
    found = {}
    for at in range(1, slices + 1):
        for kind in kinds:
            rule = Rule(layers=(f"*.{kind}",), blocks=(f"{at}/{slices}",), keep=True)
            found[f"{kind} {at}/{slices}"] = rule
    return found


def plan_of(
    name: str, chosen: Mapping[str, int], rules: Mapping[str, Rule], group_size: int
) -> Plan:
    """The plan that gives each of the units its bits, in as few rules as that takes.

    `chosen` has the bits of each unit of `rules`, and of the head if that is quantized.
    """
    body = {unit: bits for unit, bits in chosen.items() if unit != HEAD}
    common = Counter(body.values()).most_common(1)[0][0]
    of_kind: dict[tuple[str, ...], dict[str, int]] = {}
    for unit, bits in body.items():
        rule = rules[unit]
        of_kind.setdefault(rule.layers or (), {})[str((rule.blocks or ("",))[0])] = bits
    made = []
    for bits in sorted(set(body.values()) - {common}, reverse=True):
        together: dict[tuple[str, ...] | None, list[str]] = {}
        for layers, by_block in of_kind.items():
            blocks = tuple(block for block, here in by_block.items() if here == bits)
            if blocks:
                where = None if len(blocks) == len(by_block) else blocks
                together.setdefault(where, []).extend(layers)
        made += [
            Rule(layers=tuple(layers), blocks=blocks, bits=bits)
            for blocks, layers in together.items()
        ]
    return Plan(
        name=name, bits=common, group_size=group_size, head=chosen.get(HEAD), rules=tuple(made)
    )

"""A plan into `plans.toml`, with everything else in the file left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitgate.catalog import Plan, Rule


def refuse_unwritable(path: Path) -> None:
    """Before anything is measured for a plan that is to go there; what is there stays as it is.

    Raises:
        CatalogError: if the file cannot be written, or holds no TOML.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    from bitgate.catalog import CatalogError

    partial = _partial(path)
    try:
        if path.exists():
            tomlkit.parse(path.read_text("utf-8"))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise CatalogError(
            f"--write: {path}: cannot be written: {error.strerror or error}"
        ) from None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise CatalogError(f"--write: {path}: not valid TOML: {error}") from None


def write_plan(path: Path, plan: Plan, comments: Sequence[str]) -> None:
    """Add the plan, or put it in place of the one with its name; the file is whole at any time."""
    import tomlkit

    text = path.read_text("utf-8") if path.exists() else ""
    document = tomlkit.parse(text)
    plans = document.setdefault("plan", tomlkit.table(is_super_table=True))
    new = tomlkit.parse(plan_toml(plan, comments))["plan"][plan.name]
    if plan.name in plans:
        plans[plan.name] = new
    else:
        plans.append(plan.name, new)
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(tomlkit.dumps(document), "utf-8")
    partial.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def plan_toml(plan: Plan, comments: Sequence[str] = ()) -> str:
    """The plan as someone would write it; the comments stand below its name."""
    lines = [f'[plan."{plan.name}"]' if "." in plan.name else f"[plan.{plan.name}]"]
    lines += [f"# {comment}" for comment in comments]
    lines += [f"bits = {plan.bits}", f"group_size = {plan.group_size}"]
    if plan.head is not None:
        lines.append(f"head = {plan.head}")
    if plan.searched_on is not None:
        lines.append(f'searched_on = "{plan.searched_on.name}"')
    lines += ["rules = [", *(f"    {_rule(rule)}," for rule in plan.rules), "]"]
    return "\n".join(lines) + "\n"


def _rule(rule: Rule) -> str:
    parts = []
    if rule.layers is not None:
        parts.append(f"layers = {_list(rule.layers)}")
    if rule.part is not None:
        parts.append(f'part = "{rule.part}"')
    if rule.blocks is not None:
        parts.append(f"blocks = {_list(rule.blocks)}")
    parts += [
        f"{key} = {value}"
        for key in ("bits", "group_size")
        if (value := getattr(rule, key)) is not None
    ]
    if rule.keep:
        parts.append("keep = true")
    return f"{{ {', '.join(parts)} }}"


def _list(values: Sequence[int | str]) -> str:
    written = [f'"{value}"' if isinstance(value, str) else str(value) for value in values]
    return written[0] if len(written) == 1 else f"[{', '.join(written)}]"

"""A plan as a page that a person reads."""

from lm import cli
from lm.hlo.names import phase_and_module
from lm.plan.advice import advice
from lm.plan.memory import LARGEST

_BAR = 40
_MIB, _GIB = 2**20, 2**30
# How often the estimate the compiler's own cycles may be before the page says that one of them is wrong.
_APART = 2.0
# Of a step, what its instructions take to begin before the page says so.
_MUCH = 0.2


def page(plan: dict) -> str:
    """The page of a plan (see `lm.plan.planning.plan`)."""
    parts = [_head(plan), _memory(plan)]
    if plan["estimated_step_seconds"]:
        parts += [_speed(plan), _classes(plan), _collectives(plan)]
    if plan["largest_buffers"]:
        parts.append(_buffers(plan))
    if not plan["fits"]:
        parts.append("to change\n" + "\n".join(f"  {line}" for line in advice(plan)))
    if plan["warnings"]:
        parts.append("the partitioner says\n" + "\n".join(f"  {line[:200]}" for line in plan["warnings"]))
    return "\n\n".join(parts)


def _head(plan) -> str:
    axes = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    config = plan["config"]
    rows = f"{config['data']['global_batch']:,} rows of {config['data']['context']:,}"
    compiled = f"compiled in {plan['compile_seconds']:.0f} s"
    return (f"{plan['source'] or config['model']['name']} on {plan['topology']}: {plan['chips']:,} chips, {axes}\n"
            f"{_count(plan['parameters'])} parameters, {rows}, {plan['tokens_per_step']:,.0f} tokens a step; {compiled}")


def _count(number: int) -> str:
    return next((f"{number / size:,.3g}{letter}" for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if number >= size), str(number))


def _memory(plan) -> str:
    used, limit = plan["hbm_bytes_per_chip"], plan["hbm_limit"]
    verdict = "fits" if plan["fits"] else "does not fit"
    lines = [f"memory  {verdict}: {used / _GIB:.2f} of {limit / _GIB:.2f} GiB a chip ({used / limit:.0%})"]
    unit, name_of_unit = _unit(used)
    for name, size in plan["peak_breakdown"].items():
        bar = "#" * round(_BAR * size / max(used, limit))
        lines.append(f"  {name:<12}{size / unit:>9.2f} {name_of_unit}  {bar}".rstrip())
    if plan["host_bytes"]:
        lines.append(f"  {'(host)':<12}{plan['host_bytes'] / _GIB:>9.2f} GiB")
    return "\n".join(lines)


def _unit(size: float) -> tuple[int, str]:
    return (_GIB, "GiB") if size >= _GIB else (_MIB, "MiB")


def _speed(plan) -> str:
    if plan["days_for_tokens"] is None:
        days = "no days: how long an epoch of train.steps is, only the text tells; give train.steps='N tokens'"
    else:
        days = f"{duration(plan['days_for_tokens'])} for {plan['train_tokens']:.3g} tokens"
    compiler = f"; the compiler's own cycles {seconds(plan['compiler_seconds'])}" if plan["compiler_seconds"] else ""
    # The compiler counts the body of a loop once, which may even come out below zero.
    compiler += f", its optimal_seconds {seconds(plan['optimal_seconds'])}" if plan["optimal_seconds"] else ""
    told = (f"speed   {seconds(plan['estimated_step_seconds'])} a step, bound by {plan['bound']} (at least "
            f"{seconds(plan['lower_bound_seconds'])}{compiler})\n"
            f"        MFU {plan['estimated_mfu']:.1%}, {plan['tokens_per_second']:,.0f} tokens/s, {days}")
    if plan["starting_seconds"] > _MUCH * plan["estimated_step_seconds"]:
        told += (f"\n        {seconds(plan['starting_seconds'])} of it is for beginning small instructions: fewer and larger ones (rows, "
                 "width) would use the chip better")
    if (plan["compiler_seconds"] or 0) > _APART * plan["estimated_step_seconds"]:
        told += "\n        do not rely on it: the compiler expects this program to take far longer"
    return told


def seconds(value: float) -> str:
    """Seconds with a unit that suits them."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def duration(days: float) -> str:
    """Days, or what is less than one in a unit that suits it."""
    for unit, of_a_day in (("days", 1), ("hours", 24), ("minutes", 24 * 60)):
        if days * of_a_day >= 1:
            return f"{days * of_a_day:.3g} {unit}"
    return f"{days * 24 * 60 * 60:.3g} seconds"


def _classes(plan) -> str:
    rows = [{"time by": row["class"], "times": row["count"], "TFLOP": row["flops"] / 1e12, "GB": row["bytes"] / 1e9,
             "ms": row["seconds"] * 1e3, "exposed ms": row["exposed_seconds"] * 1e3} for row in plan["classes"]]
    return cli.table(rows)


def _collectives(plan) -> str:
    rows = [{"collective": row["kind"], "axis": row["axis"], "times": row["count"], "GB": row["bytes"] / 1e9, "GB sent": row["sent"] / 1e9}
            for row in plan["collectives"]]
    return cli.table(rows) if rows else "nothing is sent between chips"


def _buffers(plan) -> str:
    rows, (unit, name_of_unit) = [], _unit(plan["largest_buffers"][0]["bytes"])
    for row in plan["largest_buffers"]:
        phase, module = phase_and_module(row["op_name"])
        line = row["source"] or ("" if module else row["op_name"].replace("\\", ""))
        rows.append({f"largest {LARGEST} at the peak": row["shape"], name_of_unit: row["bytes"] / unit, "of": row["count"],
                     "part": row["part"], "line": line, "in": f"{phase} {module}".strip()})
    return cli.table(rows)

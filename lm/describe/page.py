"""A description as text for people."""

from lm import cli
from lm.describe.initial import is_constant
from lm.describe.parameters import any_layer, cuts, grouped

# Of the state of training, what a component has a part of.
KINDS = ("parameters", "gradients", "optimizer", "ema")
WIDTH = 40


def text_of(description: dict) -> str:
    """A description as a page for people: parameters, components with their FLOPs and memory, and what they come to."""
    totals = description["totals"]
    if not totals["parameters"]:
        return f"{totals['model']}: made by counting; its size follows from the text"
    tables = [cli.table(parameter_rows(description)), cli.table(component_rows(description))]
    parts = [title(description), *tables, _memory(description), _facts(description), description.get("note")]
    return "\n\n".join(filter(None, parts))


def title(description: dict) -> str:
    """What is described, and where it would run."""
    axes = " x ".join(f"{axis} {size}" for axis, size in description["mesh"].items() if size > 1)
    devices = f"{description['devices']:,} device{'s' if description['devices'] > 1 else ''}"
    where = f"{description['topology']}, {devices}" if description["topology"] else devices
    return f"{description['totals']['model']}, {description['totals']['objective']}, on {where}{f' as {axes}' if axes else ''}"


def parameter_rows(description: dict) -> list[dict]:
    """Cells by column for every parameter; equal layers are one row."""
    several, rows = description["devices"] > 1, []
    for row in grouped(description["parameters"]):
        shape = " x ".join(map(str, row["shape"]))
        mesh = cuts(row, description["mesh"]) if several else ", ".join(str(axis or "-") for axis in row["mesh"])
        rows.append({"parameter": row["name"], "shape": f"{row['count']} of {shape}" if row["count"] > 1 else shape,
                     "logical axes": ", ".join(str(axis or "-") for axis in row["axes"]), "cut by" if several else "may be cut by": mesh,
                     "init": initial(row["init"]), "group": row["group"], "decays": "yes" if row["decays"] else "no",
                     "entries": row["entries"], "on a device": f"{cli.human(row['bytes']['parameters'])}B"})
    return rows


def initial(init: list[float] | None) -> str:
    """What a parameter begins with: `1`, or `0 ± 0.02` for a mean and a standard deviation; `-` where it is not known."""
    if init is None:
        return "-"
    mean, deviation = init
    mean = 0.0 if abs(mean) < deviation / 10 else mean  # what entries with mean 0 come to
    return f"{mean:.3g}" if is_constant(mean, deviation) else f"{mean:.3g} ± {deviation:.3g}"


def component_rows(description: dict) -> list[dict]:
    """Cells by column for every component, and their sums; bytes are of one device."""
    totals, memory = description["totals"], description["memory"]
    kinds = [kind for kind in KINDS if memory[kind]]

    def cells(name, entries, forward, training, sizes):
        return {"component": name, "entries": entries or None, "of all": share(entries, totals["parameters"]),
                "FLOPs a token": flops(forward), "in training": flops(training), "of them": share(training, totals["train_flops_per_token"])
                } | {kind: f"{cli.human(sizes[kind])}B" if sizes.get(kind) else "" for kind in kinds}

    rows = [cells(row["component"], row["parameters"], row["forward_flops_per_token"], row["train_flops_per_token"], row["bytes"])
            for row in description["components"]]
    return [*rows, cells("all", totals["parameters"], totals["forward_flops_per_token"], totals["train_flops_per_token"], memory)]


def flops(number: float) -> str:
    """FLOPs with their thousands as a letter, nothing for none."""
    return cli.human(number).strip() if number else ""


def share(part: float, whole: float) -> str:
    """A part in per cent, nothing for none."""
    return f"{part / whole:.1%}" if part and whole else ""


def memory_parts(description: dict) -> list[tuple[str, int]]:
    """(what, bytes) of one device, all there at the same time; of one chip as compiled, where there is a plan."""
    plan = description.get("plan")
    if plan:
        return list(plan["peak_breakdown"].items())
    return [(name, description["memory"][name]) for name in (*KINDS, "activations", "logits") if description["memory"][name]]


def unit_of(description: dict) -> str:
    """What `memory_parts` and `limit_of` are of: plans count by chips, which may be several devices."""
    return "chip" if "plan" in description else "device"


def limit_of(description: dict) -> int | None:
    """Bytes of the memory that `memory_parts` share, where they are known."""
    plan = description.get("plan")
    return plan["hbm_limit"] if plan else description["memory"]["limit"]


def limit_text(description: dict) -> str:
    """` of` the limit, where it is known: of a plan what the compiler may use, else what is installed, which is a little more."""
    limit = limit_of(description)
    return f" of {cli.human(limit)}B{'' if 'plan' in description else ' installed'}" if limit else ""


def bytes_per_device(description: dict) -> dict[str, int]:
    """What one device holds, by name, with "host" and, where it is known, "limit"; where there is a plan, of the compiled step and in the
    names of its `peak_breakdown`."""
    memory, plan = description["memory"], description.get("plan")
    if plan:
        several = description["devices"] // plan["chips"]
        parts = [*memory_parts(description), ("limit", limit_of(description))]
        memory = {name: size // several for name, size in parts} | {"host": memory["host"]}
    return {name: value for name, value in memory.items() if value is not None}


def _memory(description) -> str:
    parts, limit, host = memory_parts(description), limit_of(description), description["memory"]["host"]
    total = sum(size for _, size in parts)
    known = "of the compiled step" if "plan" in description else "before anything is compiled"
    lines = [f"memory of a {unit_of(description)}, {known}: {cli.human(total)}B{limit_text(description)}"]
    for name, size in parts:
        note = ", at least" if "plan" not in description and name in ("activations", "logits") else ""
        lines.append(f"  {name + note:<24}{cli.human(size) + 'B':>10}  {'#' * round(WIDTH * size / max(total, limit or 0))}".rstrip())
    if host:
        lines.append(f"  {'(in the host)':<24}{cli.human(host) + 'B':>10}")
    return "\n".join(lines)


def _facts(description) -> str:
    totals = description["totals"]
    sizes = ", ".join(f"{name} {cli.human(size)}B" for name, size in totals["bytes"].items() if size)
    return "\n".join([
        f"{totals['parameters']:,} parameters, {totals['embedding_parameters']:,} of them in embeddings; {totals['vocab_size']:,} ids",
        f"{cli.human(totals['train_flops_per_token'])}FLOPs for a token, {cli.human(totals['train_flops_per_step'])}FLOPs for a step of "
        f"{totals['tokens_per_step']:,.0f} tokens", f"between steps and for gradients, of one copy of the model: {sizes}"])


def difference_rows(difference: dict) -> list[dict]:
    """Cells by column for everything that two configs differ in; what equal layers have in common is one row."""
    rows: dict[tuple, list[str]] = {}
    for part, values in difference.items():
        for name, pair in values.items():
            rows.setdefault((part, any_layer(name), *(_value(part, value) for value in pair)), []).append(name)
    return [{"what": part, "name": f"{name} ({len(names)})" if len(names) > 1 else names[0], "first": first, "second": second}
            for (part, name, first, second), names in rows.items()]


def _value(part: str, value) -> str:
    if value is None:
        return "-"
    if part in ("memory", "state"):
        return f"{cli.human(value)}B"
    if part == "flops":
        return flops(value)
    if part == "init":
        return initial(value)
    if part == "parameters":
        return " x ".join(map(str, value))
    if part == "sharding":
        return ", ".join(" x ".join(axes) or "-" for axes in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {cli.human(size)}B" for name, size in value.items() if size)
    return f"{value:,.0f}" if part == "totals" and not isinstance(value, str) else str(value)


def text_of_difference(difference: dict) -> str:
    """A difference as a table for people."""
    rows = difference_rows(difference)
    return cli.table(rows) if rows else "no difference"

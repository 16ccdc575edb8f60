"""The figure of the benchmark memory."""

from lm.errors import writing

LABELS = {"context": "context (tokens of a row)", "vocab_size": "vocabulary"}


def draw(result: dict, file: str):
    """A PNG: peak memory against context and vocabulary, a line per side (dotted: what our compiled step asks for alone), and the time of
    a step against what it grows with."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    *panels, last = figure.subplots(1, 1 + len(result["fits"]))
    for panel, axis in zip(panels, result["fits"], strict=True):
        _memory(panel, axis, [row for row in result["rows"] if row["axis"] == axis])
    for axis, found in result["growth"].items():
        factors = [value / found["values"][0] for value in found["values"]]
        times = [step / found["step_ms"][0] for step in found["step_ms"]]
        last.loglog(factors, times, marker="o", label=f"{axis} (exponent {found['exponent']:.2f})")
    last.loglog(factors, factors, color="gray", linestyle=":", label="linear")
    last.set(xlabel="times as much", ylabel="times as long a step")
    for ticks in (last.set_xticks, last.set_yticks):
        ticks(factors, [f"{factor:g}" for factor in factors], minor=False)
        ticks([], minor=True)
    last.legend()
    with writing(file):
        figure.savefig(file, format="png", dpi=120)


def _memory(panel, axis: str, rows: list[dict]):
    for number, side in enumerate(dict.fromkeys(row["side"] for row in rows)):
        here = [row for row in rows if row["side"] == side]
        values = [row["value"] for row in here]
        panel.plot(values, [row["peak_gb"] for row in here], marker="o", color=f"C{number}", label=side)
        if "program_gb" in here[0]:
            panel.plot(values, [row["program_gb"] for row in here], linestyle=":", color=f"C{number}")
    panel.set(xlabel=LABELS[axis], ylabel="peak memory (GB)", ylim=(0, None))
    panel.legend()

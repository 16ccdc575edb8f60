"""What the names that JAX gives operations say of where in a model they belong."""

import re

# Of the path of a name, what is no module: transformations, loops, methods.
_NO_MODULE = re.compile(r"while|body|closed_call|checkpoint|rematted_computation|shard_map|cond|branch_\d+_fun|.*[(.].*")


def phase_and_module(op_name: str) -> tuple[str, str]:
    """(`forward`, `forward again` for the backward pass, `backward` or nothing, the module such as `layers/attention`) of an operation by
    the name that JAX gives it."""
    argument = re.findall(r"\['(\w+)'\]", op_name.replace("\\", ""))
    if argument:  # an argument of the step, named by its place in the state
        return "", "/".join(argument)
    names = op_name.split("/")
    phase = "forward again" if "rematted_computation" in names else "backward" if "transpose(" in op_name else \
        "forward" if "jvp(" in op_name else ""
    modules: list[str] = []
    for name in names[:-1]:
        if name == "shard_map" and modules:  # what a module maps over devices by itself, such as a kernel, is no module within it
            break
        if not _NO_MODULE.fullmatch(name):
            modules.append(name)
    return phase, "/".join(modules)

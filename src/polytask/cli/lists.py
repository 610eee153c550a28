"""``polytask methods`` and ``datasets``: what there is to choose from."""

from __future__ import annotations

from polytask.cli.printing import print_entry, wrapped
from polytask.cli.words import parsed

COSTS_HELP = (
    "Costs are of one step with K tasks: passes through the network, and gradients of the shared block kept at once. "
    "Where others than exact are named, the trainer's `gradients: features` takes 1 backward pass through the trunk, "
    "as gradients at the features stand in for those at the parameters, and `gradients: low_memory` keeps about 1 "
    "shared gradient, for about K (K + 1) passes. What a balancer keeps is in the checkpoint."
)


def methods_command(words: list[str]) -> int:
    """list the schedules, balancers, models, objectives and callbacks: what each needs, costs and keeps"""
    parsed("methods", methods_command.__doc__, words, None)
    from polytask.catalog import KINDS, catalog

    for kind in KINDS:
        if kind != "data set":
            print(f"{kind}s")
            if kind == "balancer":
                print(wrapped(COSTS_HELP, "  "))
            for entry in catalog(kind):
                facts = {"needs": entry.needs, "costs": str(entry.cost or ""), "keeps": entry.keeps}
                if entry.cost and entry.cost.modes:
                    facts["needs"] += f" ({', '.join(('exact', *entry.cost.modes))})"
                print_entry(entry.name, entry.summary, facts | {"paper": entry.paper})
    return 0


def datasets_command(words: list[str]) -> int:
    """list the data sets, and which files they need"""
    parsed("datasets", datasets_command.__doc__, words, None)
    from polytask.catalog import catalog

    for entry in catalog("data set"):
        files = ", ".join(getattr(entry.cls, "files", ()))
        print_entry(entry.name, entry.summary, {"needs": f"the files {files}" if files else "", "paper": entry.paper})
    return 0

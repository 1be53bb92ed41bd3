"""The tables of benchmarks/scaling.py, as Markdown."""

from __future__ import annotations

from typing import Any

from step_time import ASSUMED, RANKS, WINDOWS, predict, step_seconds


def counts_table(summary: dict[str, Any]) -> str:
    """Show how many messages were sent.

    Args:
        summary: The results, with `counts`.

    Returns:
        A Markdown table.
    """
    lines = [
        "| ranks | parameters | gradient, bytes | steps | measured windows | calls at the start"
        " | calls per measured window | bytes per call | calls in all | bytes in all |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary["counts"]:
        sent = len(row["calls"])
        start = sum(elements in (2, 4) for _, elements, _ in row["calls"])
        each = (sent - start) / row["measured_windows"] if row["measured_windows"] else 0
        size = (row["bytes"] - 8 * (2 + 4) * (start / 2)) / (sent - start) if sent > start else 0
        lines.append(
            f"| {row['ranks']} | {row['parameters']:,} | {4 * row['parameters']:,} | {row['steps']} |"
            f" {row['measured_windows']} | {start} | {each:g} | {size:g} | {sent} | {row['bytes']:,} |"
        )
    return "\n".join(lines) + "\n"


def errors_table(summary: dict[str, Any]) -> str:
    """Show how well the model fits this machine.

    Args:
        summary: The results, with `machine`, `timed` and `check`.

    Returns:
        Markdown tables.
    """
    machine, check, timed = summary["machine"], summary["check"], summary["timed"]
    lines = [
        f"Fitted on this machine: {check['bandwidth'] / 1e9:.2f} GB/s and {1e6 * check['latency']:.0f} µs per hop."
        f" Medians of {timed['rounds']} runs of at least {timed['seconds']:g} s. Python {machine['python']}, torch"
        f" {machine['torch']}, {machine['processor']}, {machine['cores']} cores, {machine['threads']} thread per rank;"
        f" the load of the machine was {machine['load_at_start']:.1f} at the start and"
        f" {machine['load_at_end']:.1f} at the end.",
        "",
        "| points | number | median error | worst error | spread of the measurement |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['group']} | {row['points']} | {100 * row['median_error']:.1f} % | {100 * row['worst_error']:+.1f} % |"
        f" ± {100 * row['unrest']:.1f} % |"
        for row in check["groups"]
    ]
    lines += [
        "",
        "What a window of 8 saves here: time per example relative to window 1.",
        "",
        "| ranks | parameters | measured | model |",
        "|---|---|---|---|",
    ]
    points = {(row["ranks"], row["parameters"], row["window"]): row for row in check["points"]}
    for (ranks, parameters, window), row in points.items():
        if window == 8:
            one = points[ranks, parameters, 1]
            measured, model = (row[key] / 8 / one[key] for key in ("seconds", "model"))
            lines.append(f"| {ranks} | {parameters:,} | {measured:.2f} | {model:.2f} |")
    return "\n".join(lines) + "\n"


def savings_tables() -> str:
    """Show what the model predicts for the assumed machines.

    Returns:
        Markdown tables.
    """
    lines = []
    for hardware in ASSUMED:
        computation = hardware.computation
        lines += [
            f"**{hardware.name}** (assumed): {hardware.stated}. So a micro-batch takes"
            f" {1000 * computation.micro_batch:.0f} ms and the optimizer {1000 * computation.optimizer:.1f} ms.",
            "",
            "| ranks | all-reduce | share of latency | step at window 1 | "
            + " | ".join(f"window {window}" for window in WINDOWS[1:])
            + " |",
            "|---" * (4 + len(WINDOWS) - 1) + "|",
        ]
        for ranks in RANKS:
            network = hardware.network
            sent = network.seconds(hardware.gradient_bytes, ranks)
            steps = [1000 * step_seconds(computation, 1, sent, overlap) for overlap in (1.0, 0.0)]
            ratios = [
                f"{predict(hardware, ranks, window):.2f} – {predict(hardware, ranks, window, 1.0):.2f}"
                for window in WINDOWS[1:]
            ]
            lines.append(
                f"| {ranks:,} | {1000 * sent:.0f} ms | {100 * network.latency_seconds(ranks) / sent:.0f} % |"
                f" {steps[0]:.0f} – {steps[1]:.0f} ms | " + " | ".join(ratios) + " |"
            )
        lines.append("")
    return "\n".join(lines)

"""Medians, spreads, ratios and geometric means, and the tables they stand in."""
import math, statistics

from measure import NOT_RUN
from programs import BOOTS, GROUPS, PROGRAMS

NATIVE, RIVAL, OURS = "native", "qemu", "ours"


class Cell:
    """All samples of one program by one runner. One failure of the program makes it FAILED, but where only the guest did
    not start, the other runs stand, with the number of those missing beside them."""

    def __init__(self, samples):
        self.failed = any(s.verdict.startswith("FAILED") for s in samples)
        self.good = [] if self.failed else [s for s in samples if s.verdict == "ok"]
        self.missing = 0 if self.failed else sum(s.verdict.startswith(NOT_RUN) for s in samples)
        self.lacking = any(s.verdict == "n/a" for s in samples)
        self.cpu = statistics.median(s.cpu for s in self.good) if self.good else None
        self.wall = statistics.median(s.wall for s in self.good) if self.good else None

    def spread(self):
        """Largest minus smallest, in percent of the median."""
        values = [s.cpu for s in self.good]
        return 100 * (max(values) - min(values)) / self.cpu if self.cpu else 0

    def text(self):
        if self.failed:
            return "FAILED"
        if self.cpu is None:
            return "n/a" if self.lacking else "not run" if self.missing else "–"
        spread = f" ±{self.spread():.0f}%" if len(self.good) > 1 else ""
        missing = f", {self.missing} of {self.missing + len(self.good)} not run" if self.missing else ""
        return f"{self.cpu:.3f}{spread} ({self.wall:.1f}){missing}"


def ratio(one, other):
    return one.cpu / other.cpu if one.cpu and other.cpu else None


def factor(value):
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def geometric_mean(values):
    values = [value for value in values if value]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def cells(samples, name):
    return [Cell(samples.get((name, who), [])) for who in (NATIVE, RIVAL, OURS)]


def measured(samples):
    return {name for name, _ in samples}


def program_rows(samples):
    yield ["Group", "Program", "Native", "QEMU", "Ours", "ours/QEMU", "ours/native", "QEMU/native"]
    for program in PROGRAMS:
        if program.name not in measured(samples):
            continue
        native, rival, ours = cells(samples, program.name)
        yield [program.group, program.name, native.text(), rival.text(), ours.text(),
               factor(ratio(ours, rival)), factor(ratio(ours, native)), factor(ratio(rival, native))]


def group_rows(samples):
    yield ["Group", "Programs compared", "ours/QEMU", "ours/native", "QEMU/native", "Ours is … times as fast as QEMU", "Goal"]
    for group, title, goal in GROUPS:
        all_cells = [cells(samples, p.name) for p in PROGRAMS if p.group == group and p.name in measured(samples)]
        if not all_cells:
            continue
        mean = geometric_mean(ratio(ours, rival) for _, rival, ours in all_cells)
        yield [title, f"{sum(1 for _, rival, ours in all_cells if ratio(ours, rival))} of {len(all_cells)}", factor(mean),
               factor(geometric_mean(ratio(ours, native) for native, _, ours in all_cells)),
               factor(geometric_mean(ratio(rival, native) for native, rival, _ in all_cells)),
               factor(1 / mean if mean else None), str(goal or "–")]


def boot_rows(samples):
    yield ["Boot", "Until", "QEMU", "Ours", "ours/QEMU", "Ours is … times as fast", "Goal", "MiB held (QEMU, ours)"]
    for boot in BOOTS:
        if boot.name not in measured(samples):
            continue
        _, rival, ours = cells(samples, boot.name)
        of = ratio(ours, rival)
        memory = ", ".join(str(max((s.memory for s in cell.good), default="–")) for cell in (rival, ours))
        yield [boot.name, boot.what, rival.text(), ours.text(), factor(of), factor(1 / of if of else None),
               str(boot.goal or "–"), memory]


def failures(samples):
    """Each thing that went wrong once, with all that it befell."""
    befell = {}
    for (name, who), all_of_them in samples.items():
        for number, sample in enumerate(all_of_them, 1):
            if sample.verdict not in ("ok", "n/a"):
                befell.setdefault((who, number, sample.verdict), []).append(name)
    for (who, number, verdict), names in befell.items():
        yield f"{', '.join(names) if len(names) < 4 else f'{names[0]} and {len(names) - 1} more'}, {who}, run {number}: {verdict}"


def aligned(rows):
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def markdown(rows):
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def tables(samples):
    """(title, rows) of each table that has anything in it."""
    for title, rows in (("Programs", program_rows), ("Groups: geometric means", group_rows), ("Boots", boot_rows)):
        rows = list(rows(samples))
        if len(rows) > 1:
            yield title, rows


def for_terminal(samples):
    parts = [f"{title}\n{aligned(rows)}" for title, rows in tables(samples)]
    broken = list(failures(samples))
    if broken:
        parts.append("FAILED\n" + "\n".join(broken))
    return "\n\n".join(parts)


HOW_TO_READ = """\
Written by `tests/bench/run`; do not edit by hand.

A cell is the median of processor seconds, ± the spread (largest minus smallest, in percent of the median; not where it
ran once), and in brackets the median of wall seconds. Processor seconds are those of the whole process, all threads, user
and kernel time: of the program itself natively, of the whole emulator otherwise, between two marks of the guest. On a
shared machine they are what can be compared; wall seconds grow with whatever else runs. *ours/QEMU* below 1 means that
ours is faster. Every program checks its own results: FAILED is one that was wrong, crashed or took too long in any of its
runs, and counts in no mean; *not run*, with what went wrong at the end, that the guest itself did not start. *n/a*: this
CPU does not offer the instructions. A program ran once in each run of each emulator, with the guest booted anew for every
run, so translation counts in full. Boots count from the start of the process.
"""


def for_markdown(samples, about):
    parts = ["# Bench results", HOW_TO_READ, markdown([["What", "Value"], *([key, value] for key, value in about.items())])]
    parts += [f"## {title}\n\n{markdown(rows)}" for title, rows in tables(samples)]
    broken = list(failures(samples))
    if broken:
        parts.append("## Failures\n\n" + "\n".join(f"- {line}" for line in broken))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"

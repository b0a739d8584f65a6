"""The live terminal view: one screen drawn from a `Status`; no state is kept between two drawings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.layout import Layout
from rich.panel import Panel
from rich.text import Text

from sheetanchor.local.dashboard.status import LineStatus, RoleStatus, StageLatency, Status, SymbolPanel
from sheetanchor.local.dashboard.tally import WORDS, ShownPrediction, slot_time_text
from sheetanchor.runtime.plain_text import clean

REFRESH_S: Final = 1.0
"""Twice per slot; a drawing costs about a hundredth of a core-second, and the pipeline needs the cores."""

NONE: Final = "-"
SPARK: Final = "▁▂▃▄▅▆▇█"
WIDTH_MAX: Final = 300
"""Wider than any terminal: the header's background is drawn to its edge."""

SYMBOLS_SHOWN: Final = 4
ARROWS: Final = {1: ("▲", "green"), -1: ("▼", "red"), 0: ("·", "dim")}


def sparkline(values: Sequence[float]) -> str:
    """Draw values as a line of blocks between their lowest and highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if high <= low:
        return SPARK[0] * len(values)
    return "".join(SPARK[min(len(SPARK) - 1, int((value - low) / (high - low) * len(SPARK)))] for value in values)


def short_number(value: float | None, unit: str = "") -> str:
    """Give a number with about three significant digits; a dash for none."""
    if value is None:
        return NONE
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{unit}"


def duration_text(seconds: float) -> str:
    """Give a duration as H:MM:SS, or MM:SS within the hour."""
    whole = int(max(0.0, seconds))
    hours, rest = divmod(whole, 3_600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"


def age_text(age_ms: float | None) -> str:
    """Give an age in the unit that fits."""
    if age_ms is None:
        return NONE
    return (
        f"{age_ms:.0f} ms"
        if age_ms < 1_000
        else f"{age_ms / 1_000:.1f} s"
        if age_ms < 60_000
        else duration_text(age_ms / 1_000)
    )


def price_text(price: float | None) -> str:
    """Give a price with decimals that suit its size."""
    if price is None:
        return NONE
    return f"{price:,.2f}" if abs(price) >= 10 else f"{price:.6g}"


def outcome_mark(prediction: ShownPrediction) -> tuple[str, str]:
    """Give ✓, ✗, … while the result is open, or = when it was flat; with its style."""
    if prediction.outcome_price is None:
        return "…", "dim"
    if prediction.hit is None:
        return "=", "dim"
    return ("✓", "bold green") if prediction.hit else ("✗", "bold red")


def _panel(lines: Iterable[Text], title: str) -> Panel:
    # Lines are padded here: rich's tables measure every cell, which takes ten times as long.
    content = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
    return Panel(content, title=title, title_align="left", border_style="dim", box=box.ROUNDED, padding=(0, 1))


def _row(widths: Sequence[int], cells: Sequence[tuple[str, str]]) -> Text:
    """Join cells (text, style) into a line; a positive width pads on the left, a negative one on the right."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for at, (width, (text, style)) in enumerate(zip(widths, cells, strict=False)):
        line.append(" " if at else "")
        shown = clean(text)
        line.append(f"{shown:>{width}}" if width >= 0 else f"{shown:<{-width}}", style=style)
    return line


def _titles(widths: Sequence[int], *titles: str) -> Text:
    return _row(widths, [(title, "dim") for title in titles])


def header(status: Status) -> Text:
    """Show the market, the time, and the address of the status page."""
    text = Text(no_wrap=True, overflow="crop", style="reverse")
    text.append(" Sheet Anchor ", style="bold")
    text.append(clean(f"{status.market} · {status.phase} {duration_text(status.uptime_s)}"))
    if status.ends_in_s is not None:
        text.append(f" · {duration_text(status.ends_in_s)} left")
    if status.page_url:
        text.append(clean(f" · {status.page_url}"))
    text.pad_right(WIDTH_MAX)
    return text


def anchor_lines(symbol: SymbolPanel) -> Text:
    """Show whether the state can be relied on, and the price with its recent course."""
    anchor = symbol.anchor
    prices = [p.price_now for p in symbol.predictions if p.price_now is not None]
    last = prices[-1] if prices else None
    text = Text(no_wrap=True, overflow="crop")
    text.append(clean(f" {symbol.symbol} "), style="bold")
    text.append(f"{price_text(last)} ", style="bold cyan")
    text.append(
        clean(f" {anchor.state} "), style="bold black on green" if anchor.state == "anchored" else "bold white on red"
    )
    text.append(f" epoch {anchor.epoch} · term {anchor.term} · {age_text(anchor.age_ms)} old")
    if anchor.rebuilding:
        text.append(" · rebuilding", style="yellow")
    if anchor.state != "anchored" and anchor.reason:
        text.append(f" · {clean(anchor.reason)}", style="yellow")
    else:
        text.append("  " + sparkline(prices[-60:]), style="cyan")
    return text


def totals(status: Status) -> Text:
    """Show the counts of the summary."""
    s = status.summary
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" slots {s['slots']}  ")
    text.append(f"missed {s['missed']}", style="bold red" if s["missed"] else "green")
    text.append(f"  degraded {s['degraded']}", style="yellow" if s["degraded"] else "")
    text.append(f"  gaps {s['gaps']}  re-anchors {s['reanchors']}")
    text.append(f"  p99 {short_number(s['latency_ms']['p99'])} ms  checks {s['validations']}")
    return text


def share_text(share: float | None) -> str:
    """Give a share in per cent; a dash for none."""
    return NONE if share is None else f"{100 * share:.0f} %"


def skill(status: Status) -> Text:
    """Show the share of right directions, the baseline without a model, and the caveat."""
    s = status.summary
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" right {share_text(s['directional_accuracy'])} of {s['decided']}")
    text.append(f"  majority baseline {share_text(s['baseline_accuracy'])}", style="dim")
    if status.skill_note:
        text.append(f"  {clean(status.skill_note)}", style="yellow")
    return text


PREDICTION_WIDTHS: Final = (-8, -1, 10, -1, 10, 3, 4)


def predictions_panel(symbol: SymbolPanel, rows: int) -> Panel:
    """List the last predictions, newest first, each with its result once ten seconds have passed."""
    shown: list[ShownPrediction | int] = [*symbol.predictions[-rows:], *symbol.missed_slots[-rows:]]
    shown.sort(key=lambda item: item if isinstance(item, int) else item.slot, reverse=True)
    lines = [_titles(PREDICTION_WIDTHS, "slot", "", "price", "", "in 10 s", "%", "ms")]
    return _panel(lines + [_prediction_row(item) for item in shown[:rows]], clean(f"predictions {symbol.symbol}"))


def _prediction_row(item: ShownPrediction | int) -> Text:
    if isinstance(item, int):
        return _row(PREDICTION_WIDTHS, [(slot_time_text(item), ""), ("✗", "bold red"), ("missed", "bold red")])
    cells = [
        (slot_time_text(item.slot), ""),
        outcome_mark(item),
        (price_text(item.price_now), ""),
        ARROWS[item.direction],
        (price_text(item.predicted_price), "yellow" if item.degraded else ""),
        (f"{100 * item.confidence:.0f}", "yellow" if item.degraded else ""),
        (short_number(item.latency_ms), ""),
    ]
    return _row(PREDICTION_WIDTHS, cells)


LATENCY_WIDTHS: Final = (-17, 5, 5)


def latency_panel(stages: Sequence[StageLatency]) -> Panel:
    """Show the latency by stage."""
    lines = [_titles(LATENCY_WIDTHS, "ms", "p50", "p99")]
    lines += [
        _row(LATENCY_WIDTHS, [(stage.stage, ""), (short_number(stage.p50_ms), ""), (short_number(stage.p99_ms), "")])
        for stage in stages
    ]
    return _panel(lines if stages else [Text("nothing measured yet", style="dim")], "latency, last minute")


ROLE_WIDTHS: Final = (-12, 7, 5, 2, 4)


def roles_panel(status: Status) -> Panel:
    """List the processes."""
    lines = [_titles(ROLE_WIDTHS, "process", "pid", "port", "↻", "MiB")]
    return _panel(lines + [_role_row(role) for role in status.roles], "processes")


def _role_row(role: RoleStatus) -> Text:
    up = role.state == "running"
    cells = [
        (f"{'●' if up else '○'} {role.name}", "green" if up else "red"),
        (str(role.pid) if up else role.state, ""),
        (str(role.port or NONE), ""),
        (str(role.restarts), "yellow" if role.restarts else "dim"),
        (short_number(role.memory_mb), ""),
    ]
    return _row(ROLE_WIDTHS, cells)


def line_text(line: LineStatus) -> Text:
    """Show the state of one line."""
    stale = line.connected is False or line.age_ms is None or line.age_ms > 1_000
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(clean(f"line {line.line} "), style="bold")
    text.append("lost " if line.connected is False else "", style="red")
    text.append(age_text(line.age_ms), style="yellow" if stale else "green")
    text.append(f"  {short_number(line.messages_per_s)} msg/s")
    return text


def _clock(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%H:%M:%S")


def events_panel(status: Status, symbol: SymbolPanel, rows: int) -> Panel:
    """Show the lines' health and, newest first, receipts, gaps and warnings."""
    events: list[tuple[int, Text]] = []
    for receipt in symbol.receipts:
        took_s = (receipt.finished_at_us - receipt.started_at_us) / 1_000_000
        good = receipt.exit_code == 0
        text = Text(clean(f"{receipt.result} {receipt.reason} {took_s:.1f} s"), style="green" if good else "red")
        events.append((receipt.finished_at_us, text))
    events += [
        (gap.at_us, Text(clean(f"{gap.rule} ({gap.source}): {gap.reason}"), style="yellow")) for gap in symbol.gaps
    ]
    for notice in status.notices:
        style = "dim" if notice.level == "warning" else "red"
        events.append((notice.at_us, Text(clean(f"{notice.source}: {notice.text}"), style=style)))
    events.sort(key=lambda event: event[0], reverse=True)
    lines = [line_text(line) for line in symbol.lines]
    lines += [Text(_clock(at_us) + " ", style="dim") + event for at_us, event in events[: max(0, rows - len(lines))]]
    return _panel(lines, "lines and events")


def render(status: Status, height: int) -> Layout:
    """Lay the screen out.

    Args:
        status: What to show.
        height: Rows of the terminal.
    """
    shown = status.symbols[:SYMBOLS_SHOWN]
    top = 3 + len(shown)
    lower = min(len(status.roles) + 3, max(5, (height - top) // 2))
    upper = max(4, height - top - lower)
    layout = Layout()
    layout.split_column(
        Layout(header(status), name="header", size=1),
        *(Layout(anchor_lines(symbol), name=f"anchor {symbol.symbol}", size=1) for symbol in shown),
        Layout(totals(status), name="totals", size=1),
        Layout(skill(status), name="skill", size=1),
        Layout(name="upper", size=upper),
        Layout(name="lower", size=lower),
    )
    layout["upper"].split_row(
        Layout(predictions_panel(shown[0], upper - 3), name="predictions", ratio=5),
        Layout(latency_panel(status.stages), name="latency", ratio=3, minimum_size=33),
    )
    layout["lower"].split_row(
        Layout(roles_panel(status), name="roles", ratio=1),
        Layout(events_panel(status, shown[0], lower - 2), name="events", ratio=1),
    )
    return layout


def slot_line(symbol: str, prediction: ShownPrediction) -> str:
    """Give the line that `--plain` prints for a prediction."""
    word = WORDS[prediction.direction]
    doubt = f"  degraded: {prediction.reason}" if prediction.degraded else ""
    return clean(
        f"{slot_time_text(prediction.slot)} {symbol} {price_text(prediction.price_now)}"
        f" -> {price_text(prediction.predicted_price)} {word} confidence {prediction.confidence:.2f}"
        f"  {prediction.mode} epoch {prediction.epoch}  {prediction.latency_ms:.1f} ms{doubt}"
    )


def missed_line(symbol: str, slot: int) -> str:
    """Give the line that `--plain` prints for a missed slot."""
    return clean(f"{slot_time_text(slot)} {symbol} missed")

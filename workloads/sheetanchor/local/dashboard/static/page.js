"use strict";
// Draws the page from /api/status once a second. Everything is set as text or as SVG attributes, never as markup.

const POLL_MS = 1000;
const TIMEOUT_MS = 4000;
const LOST_AFTER_MS = 5000;
const RETRY_MAX_MS = 10000;
const ROWS = 14;
const SVG = "http://www.w3.org/2000/svg";

let chosen = "";
let failures = 0;
let lastContact = Date.now();

const at = (id) => document.getElementById(id);

function element(tag, text, classes) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function setText(id, text) {
  // Only when it changed: screen readers read a status region aloud at every write.
  const node = at(id);
  if (node.textContent !== text) node.textContent = text;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function price(value) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value) >= 10 ? 2 : 6;
  return value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits });
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

function age(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return Math.round(ms) + " ms";
  if (ms < 60000) return (ms / 1000).toFixed(1) + " s";
  return duration(ms / 1000);
}

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  return (hours ? hours + ":" : "") + pad(Math.floor(whole / 60) % 60) + ":" + pad(whole % 60);
}

function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB");
}

const ARROWS = { "1": ["▲", "up", "good"], "-1": ["▼", "down", "bad"], "0": ["·", "flat", "muted"] };

function mark(prediction) {
  if (prediction.outcome_price === null) return ["…", "open", "muted"];
  if (prediction.hit === null) return ["=", "undecided", "muted"];
  return prediction.hit ? ["✓", "right", "good"] : ["✗", "wrong", "bad"];
}

function row(cells) {
  const made = element("tr");
  for (const [text, classes, label] of cells) {
    const cell = element("td", text, classes);
    if (label) {
      cell.title = label;
      cell.setAttribute("aria-label", label);
    }
    made.append(cell);
  }
  return made;
}

function fill(id, rows, none) {
  const body = at(id);
  if (!rows.length && none) {
    const wide = element("td", none, "muted");
    wide.colSpan = 9;
    const only = element("tr");
    only.append(wide);
    rows = [only];
  }
  body.replaceChildren(...rows);
}

function events(id, items, none) {
  const list = at(id);
  const made = items.map(({ ms, title, classes, text, more }) => {
    const item = element("li");
    item.append(element("time", clock(ms)), element("strong", title, classes));
    if (text) item.append(element("span", text));
    if (more) item.append(element("span", more, "muted"));
    return item;
  });
  list.replaceChildren(...(made.length ? made : [element("li", none, "muted")]));
}

function drawSymbols(symbols) {
  const nav = at("symbols");
  nav.hidden = symbols.length < 2;
  if (!symbols.some((s) => s.symbol === chosen)) chosen = symbols[0].symbol;
  const wanted = symbols.map((s) => s.symbol + s.anchor.state).join() + chosen;
  if (nav.hidden || nav.dataset.shown === wanted) return;
  nav.dataset.shown = wanted;
  nav.replaceChildren(...symbols.map((s) => {
    const button = element("button", s.symbol + (s.anchor.state === "anchored" ? "" : " · " + s.anchor.state));
    button.type = "button";
    button.setAttribute("aria-pressed", String(s.symbol === chosen));
    button.addEventListener("click", () => { chosen = s.symbol; poll.now(); });
    return button;
  }));
}

function drawState(symbol) {
  const anchor = symbol.anchor;
  const known = symbol.predictions.filter((p) => p.price_now !== null);
  setText("symbol", symbol.symbol);
  setText("price", price(known.length ? known[known.length - 1].price_now : null));
  setText("anchor", anchor.state);
  at("anchor").className = "badge " + (anchor.state === "anchored" ? "anchored" : "suspect");
  const more = [
    `epoch ${anchor.epoch}, term ${anchor.term}`,
    `last market event ${age(anchor.age_ms)} ago`,
    `update ${anchor.update_id}`,
  ];
  if (anchor.rebuilding) more.push("a re-anchor is running");
  if (anchor.reason) more.push("reason: " + anchor.reason);
  if (anchor.writer) more.push("active processor " + anchor.writer);
  setText("anchor-more", more.join("\n"));
}

function share(value) {
  return value === null ? "–" : Math.round(value * 100) + " %";
}

function drawNumbers(summary, note) {
  const facts = [
    ["Slots", summary.slots, ""],
    ["Missed", summary.missed, summary.missed ? "bad" : "good"],
    ["Degraded", summary.degraded, summary.degraded ? "warn" : ""],
    ["Gaps", summary.gaps, summary.gaps ? "warn" : ""],
    ["Re-anchors", summary.reanchors, ""],
    ["Validations only", summary.validations, ""],
    ["Epoch", summary.epoch, ""],
    ["Latency p50", short(summary.latency_ms.p50) + " ms", ""],
    ["Latency p99", short(summary.latency_ms.p99) + " ms", ""],
    ["Direction right", share(summary.directional_accuracy), ""],
    ["Decided", summary.decided, ""],
    ["Majority baseline", share(summary.baseline_accuracy), ""],
  ];
  at("numbers").replaceChildren(...facts.map(([name, value, classes]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", String(value), classes));
    return pair;
  }));
  setText("skill-note", note && "This run: " + note + ".");
}

function drawPredictions(symbol) {
  const missed = symbol.missed.map((m) => ({ missed: true, slot: m.slot, time_ms: m.time_ms }));
  const latest = [...symbol.predictions, ...missed].sort((a, b) => b.slot - a.slot).slice(0, ROWS);
  fill("predictions", latest.map((p) => {
    if (p.missed) return row([[clock(p.time_ms)], ["✗", "mark bad", "missed"], ["missed", "n bad"], [""], [""], [""], [""]]);
    const [sign, outcome, tint] = mark(p);
    const [arrow, direction, arrowTint] = ARROWS[String(p.direction)];
    const doubt = p.degraded ? "warn" : "";
    return row([
      [clock(p.time_ms)], [sign, "mark " + tint, outcome], [price(p.price_now), "n"], [arrow, arrowTint, direction],
      [price(p.predicted_price), "n " + doubt, p.degraded ? "degraded: " + p.reason : ""],
      [p.confidence.toFixed(2), "n " + doubt], [short(p.latency_ms), "n"],
    ]);
  }), "none yet");
}

function drawChart(symbol) {
  const box = at("chart");
  const width = Math.max(280, box.clientWidth), height = box.clientHeight || 240;
  const left = 8, right = 74, top = 10, bottom = 22;
  const known = symbol.predictions.filter((p) => p.price_now !== null);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  if (known.length < 2) {
    svg.append(shape("text", { class: "tick", x: width / 2, y: height / 2, "text-anchor": "middle" }, "waiting for predictions…"));
    box.replaceChildren(svg);
    return;
  }
  const first = known[0].time_ms, last = known[known.length - 1].target_ms;
  const prices = known.map((p) => p.price_now);
  let low = Math.min(...prices), high = Math.max(...prices);
  const pad = Math.max((high - low) * 0.12, Math.abs(high) * 1e-6);
  low -= pad; high += pad;
  const x = (ms) => left + ((ms - first) / (last - first)) * (width - left - right);
  const y = (value) => top + ((high - Math.min(high, Math.max(low, value))) / (high - low)) * (height - top - bottom);
  svg.setAttribute("aria-label", `${symbol.symbol}: price between ${price(Math.min(...prices))} and ${price(Math.max(...prices))}`);
  drawAxes(svg, { x, y, low, high, first, last, width, height, left, right, top, bottom });
  for (const m of symbol.missed) {
    if (m.time_ms >= first) svg.append(shape("rect", { class: "gone", x: x(m.time_ms) - 2, y: top, width: 4, height: height - top - bottom }));
  }
  const aims = shape("g", {}), dots = shape("g", {});
  for (const p of known) {
    const kind = p.hit === true ? "hit" : p.hit === false ? "miss" : "open";
    if (p.predicted_price !== null && !p.degraded) {
      aims.append(shape("line", { class: "aim " + kind, x1: x(p.time_ms), y1: y(p.price_now), x2: x(p.target_ms), y2: y(p.predicted_price) }));
    }
    const dot = shape("circle", { class: kind + (p.degraded ? " degraded" : ""), cx: x(p.time_ms), cy: y(p.price_now), r: 2.6 });
    dot.append(shape("title", {}, `${clock(p.time_ms)}  ${price(p.price_now)} → ${price(p.predicted_price)}, ${mark(p)[1]}`));
    dots.append(dot);
  }
  const points = known.map((p) => `${x(p.time_ms).toFixed(1)},${y(p.price_now).toFixed(1)}`).join(" ");
  svg.append(aims, shape("polyline", { class: "line", points }), dots);
  box.replaceChildren(svg);
}

function drawAxes(svg, c) {
  const lines = 4;
  for (let i = 0; i <= lines; i++) {
    const value = c.low + ((c.high - c.low) * i) / lines, h = c.y(value);
    svg.append(shape("line", { class: "axis", x1: c.left, x2: c.width - c.right, y1: h, y2: h }));
    svg.append(shape("text", { class: "tick", x: c.width - c.right + 6, y: h + 4 }, price(value)));
  }
  const seconds = [10, 30, 60, 120, 300].find((s) => (c.last - c.first) / (s * 1000) * 70 < c.width - c.right) || 600;
  for (let ms = Math.ceil(c.first / (seconds * 1000)) * seconds * 1000; ms <= c.last; ms += seconds * 1000) {
    const h = c.x(ms);
    if (h < c.left + 26 || h > c.width - c.right - 26) continue;
    svg.append(shape("text", { class: "tick", x: h, y: c.height - 5, "text-anchor": "middle" }, clock(ms)));
  }
}

function drawTables(body, symbol) {
  fill("stages", body.stages.map((s) => row([[s.stage], [short(s.p50_ms), "n"], [short(s.p95_ms), "n"], [short(s.p99_ms), "n"]])), "nothing measured yet");
  fill("lines", symbol.lines.map((l) => {
    const state = l.connected === null ? ["unknown", "warn"] : l.connected ? ["connected", "good"] : ["lost", "bad"];
    return row([[l.line], state, [age(l.age_ms), "n" + (l.age_ms === null || l.age_ms > 1000 ? " warn" : "")], [short(l.messages_per_s), "n"]]);
  }), "no line yet");
  fill("roles", body.roles.map((r) => row([
    [r.name], [r.state, r.state === "running" ? "good" : "bad"], [r.port || "–", "n"], [r.pid || "–", "n"],
    [r.restarts, "n" + (r.restarts ? " warn" : "")], [short(r.memory_mb), "n"],
  ])), "none yet");
  const used = body.redis_memory_mb === null ? "" : `, ${short(body.redis_memory_mb)} MiB of data`;
  setText("redis", `Redis: ${body.redis}${used}`);
}

function drawEvents(body, symbol) {
  events("receipts", symbol.receipts.map((r) => ({
    ms: r.finished_at_us / 1000,
    title: r.result,
    classes: r.exit_code === 0 ? "good" : "bad",
    text: `${r.reason}, ${age((r.finished_at_us - r.started_at_us) / 1000)}, epoch ${r.epoch_before} → ${r.epoch_after}`,
    more: [r.exit_code === 0 ? "" : r.message, ...Object.entries(r.phases).map(([name, s]) => `${name} ${age(1000 * Number(s))}`)].filter(Boolean).join(" · "),
  })), "none yet");
  events("gaps", symbol.gaps.map((g) => ({
    ms: g.at_us / 1000, title: g.rule, classes: "warn", text: g.reason, more: `${g.severity} · ${g.action} · found by ${g.source}`,
  })), "none");
  const dropped = body.dropped_log_lines ? [{ ms: body.now_us / 1000, title: "log", classes: "warn", text: `${body.dropped_log_lines} log lines were dropped, since stderr is read too slowly` }] : [];
  events("notices", [...dropped, ...body.notices.slice().reverse().map((n) => ({
    ms: n.at_us / 1000, title: n.source, classes: n.level === "warning" ? "warn" : "bad", text: n.text,
  }))], "none");
}

function draw(body) {
  drawSymbols(body.symbols);
  const symbol = body.symbols.find((s) => s.symbol === chosen);
  const left = body.ends_in_s === null ? "" : `, ends in ${duration(body.ends_in_s)}`;
  setText("run", `${body.market} market · ${body.phase} · up ${duration(body.uptime_s)}${left}`);
  document.title = `${symbol.anchor.state === "anchored" ? "⚓" : "⚠"} ${symbol.symbol} · Sheet Anchor`;
  drawState(symbol);
  drawNumbers(body.summary, body.skill_note);
  drawPredictions(symbol);
  drawChart(symbol);
  drawTables(body, symbol);
  drawEvents(body, symbol);
}

function contact(ok) {
  if (ok) {
    lastContact = Date.now();
    failures = 0;
  } else {
    failures += 1;
  }
  const lost = Date.now() - lastContact > LOST_AFTER_MS || failures > 2;
  document.body.classList.toggle("stale", lost);
  at("contact").hidden = !lost;
  if (lost) {
    setText("contact", `No answer from the supervisor since ${clock(lastContact)}. The page shows the state of that time and keeps trying.`);
    document.title = "⚠ no answer · Sheet Anchor";
  }
}

const poll = {
  timer: 0,
  async now() {
    clearTimeout(poll.timer);
    try {
      const answer = await fetch("/api/status", { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
      if (!answer.ok) throw new Error("status " + answer.status);
      const body = await answer.json();
      contact(true);
      draw(body);
    } catch (error) {
      console.warn("status:", error);
      contact(false);
    }
    const delay = Math.min(RETRY_MAX_MS, POLL_MS * 2 ** Math.max(0, failures - 3));
    clearTimeout(poll.timer);
    poll.timer = setTimeout(poll.now, document.hidden ? 5 * delay : delay);
  },
};

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll.now(); });
addEventListener("resize", () => poll.now());
poll.now();

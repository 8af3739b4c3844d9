// The live view: what the server does now, as numbers, charts and one row per request.

import { call, events, Refusal } from "./api.js";
import { Chart } from "./chart.js";
import { byId, el, icon } from "./dom.js";
import { open as openKeys } from "./keys.js";
import { count, percent, rate, seconds } from "./numbers.js";
import { Rows } from "./rows.js";

const FEED = "/debug/live?every=1";
const LONGEST = 15 * 60; // seconds that are remembered

// name, what it says, what stands below
const TILES = [
  ["Running", (now) => count(now.requests.running), (now) => `${count(now.requests.waiting)} waiting`],
  ["KV blocks", (now) => percent(now.kv.usage), (now) => `${count(now.kv.used)} of ${count(now.kv.blocks)}`],
  ["Prefix hits", (now) => percent(now.prefix.rate), (now) => `${rate(now.prefix.hits)} of ${rate(now.prefix.lookups)} tokens`],
  ["Tokens per second", (now) => rate(now.tokens_per_second.generated), (now) => `${rate(now.tokens_per_second.prompt)} of prompts`],
  ["Time to first token", (now) => seconds(now.latency.ttft.p50), (now) => `median; p99 ${seconds(now.latency.ttft.p99)}`],
  ["Inter-token latency", (now) => seconds(now.latency.itl.p50), (now) => `median; p99 ${seconds(now.latency.itl.p99)}`],
];
const latency = (kind) => ["p50", "p90", "p99"].map((share) => (now) => now.latency[kind][share]);

// chart, where its lines come from
const CHARTS = [
  [new Chart("Tokens per second", ["generated", "prompt"], rate), [(now) => now.tokens_per_second.generated, (now) => now.tokens_per_second.prompt]],
  [new Chart("Requests", ["running", "waiting"], count, { top: 4, whole: true }), [(now) => now.requests.running, (now) => now.requests.waiting]],
  [new Chart("KV blocks in use, prefix hits", ["in use", "hits"], percent, { top: 1 }), [(now) => now.kv.usage, (now) => now.prefix.rate]],
  [new Chart("Time to first token (TTFT)", ["p50", "p90", "p99"], seconds), latency("ttft")],
  [new Chart("Inter-token latency (ITL)", ["p50", "p90", "p99"], seconds), latency("itl")],
];

const view = byId("live-view");
const rows = new Rows();
const tiles = TILES.map(([name]) => tile(name));
const span = el("select", { onchange: () => draw() });
const pause = el("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: togglePause });
const told = el("p", { class: "note", role: "status" }, "Connecting…");
const about = el("p", { class: "note" });
const trouble = el("div", { class: "trouble", role: "alert", hidden: true });
const board = el("div", { class: "board" });

let past = []; // snapshots
let paused = false;
let drawing = 0; // what the next frame has to do
let feed = null; // AbortController while the view is shown

build();

function build() {
  for (const [minutes, name] of [[1, "1 minute"], [5, "5 minutes"], [15, "15 minutes"]]) {
    span.append(el("option", { value: minutes * 60, selected: minutes === 5 }, name));
  }
  pause.append(icon("pause"), "Pause");
  const head = el(
    "header",
    { class: "live-head" },
    el("div", {}, el("h2", {}, "Live"), about),
    el("div", { class: "row" }, told, el("label", {}, el("span", { class: "hidden" }, "Span of the charts"), span), pause),
  );
  board.append(
    el("dl", { class: "tiles" }, ...tiles.map(({ element }) => element)),
    el("div", { class: "charts" }, ...CHARTS.map(([chart]) => chart.element)),
    el("div", { class: "requests" }, el("h3", {}, "Requests"), rows.element),
  );
  view.append(head, trouble, board);
  const recolour = () => CHARTS.forEach(([chart]) => chart.recolour());
  new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
}

function tile(name) {
  const value = el("dd", { class: "value" }, "–");
  const below = el("dd", { class: "note" }, " ");
  return { value, below, element: el("div", {}, el("dt", {}, name), value, below) };
}

export function show() {
  if (!feed) follow((feed = new AbortController()).signal);
}

export function hide() {
  feed?.abort();
  feed = null;
}

/** Reads the feed until the view is left, and begins again when it breaks. */
async function follow(signal) {
  while (!signal.aborted) {
    try {
      const response = await call(FEED, { role: "admin", accept: "text/event-stream", signal });
      complain(null);
      told.textContent = "";
      for await (const now of events(response)) take(now);
    } catch (fault) {
      if (signal.aborted) return;
      complain(fault);
      if (fault instanceof Refusal && [401, 403, 404].includes(fault.status)) return (feed = null);
    }
    told.textContent = "Not connected, trying again…";
    await new Promise((done) => setTimeout(done, 2000));
  }
}

function complain(fault) {
  trouble.hidden = !fault;
  board.classList.toggle("stale", Boolean(fault));
  if (!fault) return;
  trouble.replaceChildren(fault.message);
  told.textContent = "";
  if (fault.status !== 401) return;
  const enter = async () => {
    await openKeys("admin");
    show();
  };
  trouble.append(el("button", { type: "button", class: "small", onclick: enter }, "Enter the admin key"));
}

function take(now) {
  past.push(now);
  past = past.filter(({ time }) => time > now.time - LONGEST);
  if (!paused) drawing ||= requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  const now = past.at(-1);
  if (!now || paused) return; // a frame may have been asked for just before the pause
  TILES.forEach(([, value, below], i) => {
    tiles[i].value.textContent = value(now);
    tiles[i].below.textContent = below(now);
  });
  about.textContent = `${now.model}, up ${seconds(now.uptime)}, ${count(now.requests.finished)} answered, ${count(now.requests.refused)} refused`;
  const seen = past.filter(({ time }) => time >= now.time - span.value);
  const times = seen.map(({ time }) => time);
  for (const [chart, lines] of CHARTS) chart.show(times, lines.map((line) => seen.map(line)), Number(span.value));
  rows.show(now.rows, now.more);
}

function togglePause() {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  pause.replaceChildren(icon(paused ? "play" : "pause"), paused ? "Go on" : "Pause");
  if (!paused) draw();
}

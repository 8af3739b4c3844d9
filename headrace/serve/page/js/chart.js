// A chart that moves: lines over the last minutes, a legend with their values now (or under the pointer).

import uPlot from "../vendor/uplot-1.6.32/uPlot.esm.js";
import { el } from "./dom.js";

const DASHES = [[], [6, 3], [2, 3]]; // so that the lines differ without their colours, too
const HEIGHT = 180;
const WHOLE = [1, 10, 100, 1000, 10000].flatMap((ten) => [ten, 2 * ten, 3 * ten, 5 * ten]); // between lines of the grid

/** `lines`: names from top to bottom; `format(value)`: as the axis and the legend show it; `whole`: of whole numbers. */
export class Chart {
  constructor(title, lines, format, { top = null, whole = false } = {}) {
    this.title = title;
    this.lines = lines;
    this.format = format;
    this.top = top; // the least that the axis reaches up to
    this.steps = whole ? { incrs: WHOLE } : {};
    this.values = lines.map(() => el("b", {}, "–"));
    const legend = lines.map((name, i) => el("li", { class: `line-${i}` }, el("i"), name, " ", this.values[i]));
    this.plot = el("div", { class: "plot", role: "img", "aria-label": title });
    this.element = el("figure", {}, el("figcaption", {}, el("h3", {}, title), el("ul", {}, ...legend)), this.plot);
    this.data = [[], ...lines.map(() => [])];
    new ResizeObserver(() => this.#resize()).observe(this.plot);
  }

  /** Draws `columns` (one list of numbers or nulls per line) over `times` (seconds), as far back as `span` seconds. */
  show(times, columns, span) {
    this.data = [times, ...columns];
    this.span = span;
    if (this.chart) this.chart.setData(this.data);
    if (!this.hovering) this.#legend(times.length - 1);
    const said = this.lines.map((name, i) => `${name} ${this.values[i].textContent}`).join(", ");
    this.plot.setAttribute("aria-label", `${this.title}: ${said}`);
  }

  /** Draws anew in the colours that hold now. */
  recolour() {
    this.chart?.destroy();
    this.chart = null;
    this.#resize();
  }

  #resize() {
    const width = this.plot.clientWidth;
    if (!width) return;
    if (this.chart) this.chart.setSize({ width, height: HEIGHT });
    else this.chart = new uPlot(this.#options(width), this.data, this.plot);
  }

  #legend(index) {
    this.values.forEach((value, i) => (value.textContent = this.#text(this.data[i + 1][index])));
  }

  #text(value) {
    return value == null ? "–" : this.format(value);
  }

  #options(width) {
    const soft = colour("--soft");
    const axis = { stroke: soft, font: "12px system-ui, sans-serif", ticks: { show: false } };
    const grid = { stroke: colour("--line"), width: 1 };
    return {
      width,
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 18, 0, 0],
      cursor: { sync: { key: "live" }, drag: { x: false, y: false }, points: { size: 6 } },
      scales: {
        // the first minute fills the chart, then it grows, then it moves
        x: { time: true, range: (_, first, last) => [last - Math.min(this.span, Math.max(last - first, 60)), last] },
        y: { range: (_, __, most) => [0, Math.max(this.top ?? 0, (most || 0) * 1.1) || 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 28, gap: 9, space: 52, values: (_, ticks) => ticks.map(clock) },
        { ...axis, ...this.steps, grid, size: 62, space: 34, values: (_, ticks) => ticks.map((tick) => this.format(tick)) },
      ],
      series: [
        {},
        ...this.lines.map((label, i) => ({
          label,
          stroke: colour(`--line-${i}`),
          width: 1.75,
          dash: DASHES[i],
          points: { show: false },
          fill: this.lines.length < 3 && i === 0 ? colour("--line-0-fill") : undefined,
        })),
      ],
      hooks: {
        setCursor: [
          ({ cursor: { idx } }) => {
            this.hovering = idx != null;
            this.#legend(idx ?? this.data[0].length - 1);
          },
        ],
      },
    };
  }
}

const clock = (seconds) => {
  const second = seconds % 60 ? { second: "2-digit" } : {};
  const form = { hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...second };
  return new Date(seconds * 1000).toLocaleTimeString([], form);
};

/** What a custom property stands for in the colours that hold now; a canvas cannot look it up itself. */
function colour(name) {
  const probe = el("i", { class: "hidden" });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// A figure: caption, plot (uPlot), legend, a readout under the pointer, and its values as a table for everyone else.

import { make, shown, table } from "./dom.js";

const HEIGHT = 200;
const color = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const FONT = '12px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';

function axis(more) {
  return { stroke: () => color("soft"), font: FONT, grid: { stroke: () => color("grid"), width: 1 }, ticks: { show: false }, ...more };
}

function series(kind, { label, tone, dash, band, edge }) {
  const stroke = () => color(tone);
  if (kind === "points") return { label, stroke, paths: () => null, points: { show: true, size: 5, width: 0, fill: stroke } };
  if (kind === "bars") return { label, stroke, fill: stroke, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.75, 64] }) };
  if (band || edge) return { label, stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
  return { label, stroke, dash, width: 2, spanGaps: true, points: { show: (u, i) => u.data[i].filter(v => v !== null).length < 3, size: 6, fill: stroke } };
}

function options(spec, width, readout) {
  const pad = (u, low, high) => (low === null || low === undefined ? [0, 1] : low === high ? [low - 1, high + 1] : [low, high]);
  const around = (u, low, high) => (low === null || low === undefined ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true));
  const bands = spec.series.flatMap((s, i) => (s.band ? [{ series: [i + 1, s.band], fill: () => color(s.tone) }] : []));
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: spec.kind === "lines" } },
    scales: { x: { time: false, range: spec.xRange || pad }, y: { range: spec.yRange || around } },
    axes: [
      axis({ label: spec.x, labelFont: FONT, labelSize: 18, size: 28, ...(spec.xAxis || { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 1e4, 1e5] }) }),
      axis({ size: 46, space: 34, values: spec.yValues || ((u, ticks) => ticks.map(tick => COMPACT.format(tick))) }),
    ],
    series: [{ label: spec.x }, ...spec.series.map(s => series(spec.kind, s))],
    bands,
    hooks: {
      setCursor: [u => {
        const at = u.cursor.idx;
        readout.textContent = at === null || at === undefined ? "" : spec.series.map((s, i) => [s.label, u.data[i + 1][at]])
          .filter(([, value]) => value !== null && value !== undefined)
          .reduce((text, [label, value]) => `${text}; ${label} ${shown(value)}`, `${spec.x} ${(spec.xText || shown)(u.data[0][at])}`);
      }],
    },
  };
}

export class Chart {
  // spec: kind (lines, bars, points), title, note, x, series, data(state) -> {columns, text} or null, and how the axes look.
  // A series with `band` is filled down to the series of that number, which is an `edge`; neither is drawn itself.
  constructor(spec) {
    this.spec = spec;
    this.plot = make("div", { className: "plot", role: "img" });
    this.readout = make("p", { className: "readout", ariaHidden: "true" });
    this.values = make("div", { className: "wide", tabindex: "0", role: "region", "aria-label": `${spec.title}, values` });
    this.details = make("details", {}, make("summary", {}, "Values"), this.values);
    const marks = spec.series.filter(s => !s.edge).map(s => make("li", { className: s.tone }, s.legend || s.label));
    this.element = make("figure", { id: `figure-${spec.id}` },
      make("figcaption", {}, spec.title, make("span", {}, spec.note)), this.plot, this.readout,
      ...(marks.length > 1 ? [make("ul", { className: "legend", ariaHidden: "true" }, ...marks)] : []), this.details);
    this.details.addEventListener("toggle", () => this.#list());
    this.sizes = new ResizeObserver(() => this.drawing?.setSize({ width: this.plot.clientWidth, height: HEIGHT }));
    this.sizes.observe(this.plot);
    this.theme = matchMedia("(prefers-color-scheme: dark)");
    this.repaint = () => this.drawing?.redraw(false, true);
    this.theme.addEventListener("change", this.repaint);
  }

  update(state) {
    const found = this.spec.data(state);
    this.columns = found?.columns;
    if (!found) {
      this.#forget();
      this.plot.className = "empty";
      this.plot.textContent = this.spec.empty || "Nothing yet";
      this.plot.setAttribute("aria-label", `${this.spec.title}: nothing yet`);
      this.details.hidden = true;
      return;
    }
    this.details.hidden = false;
    this.plot.setAttribute("aria-label", `${this.spec.title}: ${found.text}`);
    if (this.drawing) this.drawing.setData(this.columns);
    else {
      this.plot.className = "plot";
      this.plot.replaceChildren();
      this.drawing = new uPlot(options(this.spec, this.plot.clientWidth || 320, this.readout), this.columns, this.plot);
    }
    this.#list();
  }

  close() {
    this.sizes.disconnect();
    this.theme.removeEventListener("change", this.repaint);
    this.#forget();
  }

  #forget() {
    this.drawing?.destroy();
    this.drawing = null;
  }

  #list() {
    if (!this.details.open || !this.columns) return;
    const [xs, ...ys] = this.columns;
    const from = this.spec.kind === "lines" ? Math.max(0, xs.length - 20) : 0;
    const rows = xs.slice(from, from + 50).map((x, i) => [(this.spec.xText || shown)(x), ...ys.map(y => y[from + i])]);
    const part = rows.length < xs.length ? `${rows.length} of ${xs.length} rows` : "";
    this.values.replaceChildren(table(part, [this.spec.x, ...this.spec.series.map(s => s.label)], rows));
  }
}

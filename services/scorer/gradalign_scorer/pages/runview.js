// One run: warnings, figures and problems, drawn anew at most twice a second however fast rounds come.

import { getJson, getText, runPath } from "./api.js";
import { Chart } from "./charts.js";
import { ago, duration, fill, make, share, shown, table } from "./dom.js";
import { FIGURES } from "./figures.js";
import { History } from "./history.js";
import { follow } from "./live.js";
import { Metrics } from "./metrics.js";
import { problemTable } from "./problems.js";

const DRAW_EVERY = 500, STATE_EVERY = 2000, OUTLINE_EVERY = 5000, TICK = 5000;

export class RunView {
  history = new History();
  metrics = new Metrics();
  state = null;
  outline = null;
  last = { draw: 0, state: 0, outline: 0 };

  constructor(main, run, signal, live) {
    Object.assign(this, { run, signal, live });
    this.part = fill("run-view", main);
    this.part("title").textContent = run;
    document.title = `GradAlign: ${run}`;
    this.charts = FIGURES.map(spec => new Chart(spec));
    this.part("figures").replaceChildren(...this.charts.map(chart => chart.element));
    const timer = setInterval(() => this.tick(), TICK);
    document.addEventListener("visibilitychange", () => this.tick(), { signal });
    signal.addEventListener("abort", () => {
      clearInterval(timer);
      clearTimeout(this.drawing);
      this.charts.forEach(chart => chart.close());
    });
    follow(run, this.history, signal, (what, found) => this.told(what, found));
    this.tick();
  }

  told(what, found) {
    if (what === "loaded") this.state = found;
    if (what === "waiting") this.live("off", `waiting for the scorer: ${found.message}`);
    else if (what === "gone") this.gone(found);
    else this.live("on", "live");
    if (what === "loaded" || what === "rounds") this.refresh();
  }

  gone(error) {
    this.live("off", "");
    this.part("warnings").replaceChildren(make("li", { className: "none" }, error.message));
    this.part("subtitle").textContent = "This run cannot be shown.";
  }

  tick() {
    if (document.hidden || this.signal.aborted) return;
    this.refresh();
    getText("metrics", this.signal).then(text => { this.metrics.add(text); this.drawScorer(); }, error => {
      if (!this.signal.aborted) this.part("scorer-note").textContent = error.message;
    });
  }

  // Ask for what the new rounds have changed, and draw, each no more often than it may.
  refresh() {
    if (document.hidden) return;
    this.at("state", STATE_EVERY, async () => { this.state = await getJson(runPath(this.run), this.signal); });
    this.at("outline", OUTLINE_EVERY, async () => {
      this.outline = await getJson(`${runPath(this.run, "outline")}?ends=10&sample=500`, this.signal);
      this.drawProblems();
    });
    this.schedule();
  }

  at(name, every, act) {
    if (performance.now() - this.last[name] < every && this.last[name]) return;
    this.last[name] = performance.now();
    act().then(() => this.schedule(), () => {});  // what is wrong is told by the stream
  }

  schedule() {
    if (this.drawing || this.signal.aborted) return;
    const due = Math.max(0, this.last.draw + DRAW_EVERY - performance.now());
    this.drawing = setTimeout(() => requestAnimationFrame(() => {
      this.drawing = null;
      if (this.signal.aborted) return;
      this.last.draw = performance.now();
      this.draw();
    }), due);
  }

  draw() {
    if (!this.state) return;
    const { state, history } = this;
    const k = state.projection ? `k = ${shown(state.projection.dim)}` : { products: "by products", pass_rates: "by pass rates" }[state.kind] ?? "no sketches yet";
    this.part("subtitle").textContent = `strategy ${state.strategy}; ${k}; began ${ago(state.created_at)}`;
    const rounds = history.rounds.length;
    this.part("span").textContent = rounds ? `Rounds ${history.rounds[0].round} to ${history.last.round} of ${state.rounds > history.last.round ? state.rounds : history.last.round}.` : "";
    this.drawWarnings();
    this.drawTiles();
    for (const chart of this.charts) {
      chart.element.hidden = state.kind === "pass_rates" && Boolean(chart.spec.ofGradients);
      chart.update(this);
    }
  }

  drawWarnings() {
    const words = this.state.warnings.map(warning => warning.message);
    if (this.words === words.join("\n")) return;  // a live region speaks up whenever it is written
    this.words = words.join("\n");
    this.part("warnings").replaceChildren(...(words.length ? words.map(text => make("li", {}, text)) : [make("li", { className: "none" }, "None.")]));
    this.part("warnings-box").classList.toggle("some", words.length > 0);
  }

  drawTiles() {
    const { state, history } = this;
    const age = state.validation_policy_version === null ? null : state.policy_version - state.validation_policy_version;
    const advised = history.of("score").at(-1)?.summary.advised_dim;
    const picked = history.rounds.findLast(record => record.selected);
    const quantiles = history.latest("alignment_quantiles");
    const last = history.last;
    const ofGradients = state.kind === "pass_rates" ? [["pass rate, mean", share(history.latest("mean_pass_rate")), "of the last /score"]] : [
      ["alignment, median", shown(quantiles?.[3]), quantiles ? `10% ${shown(quantiles[1])}, 90% ${shown(quantiles[5])}` : "no scores yet"],
      ["validation age", age === null ? "–" : `${shown(age)}`, age === null ? "none was sent" : `policy versions; gradient ${state.validation_version}`],
      ["coherence", shown(state.coherence), `${shown(state.validation_problems)} validation problems`],
      state.kind === "products"
        ? ["reliability", shown(state.rollout_reliability), `over fresh rollouts; products over |v| ${shown(state.products_quotient)}`]
        : ["reliability", shown(state.reliability), advised ? `k = ${shown(advised)} would do` : "of the sketch"],
    ];
    const tiles = [
      ["policy version", shown(state.policy_version), `last round ${ago(state.updated_at)}`],
      ...ofGradients,
      ["no signal", share(history.share("no_signal")), "of the last 20 /score"],
      ["problems", shown(state.problems), "ever scored"],
      ["selected", picked ? shown(picked.selected) : "–", picked ? `of ${shown(picked.problems)} in round ${picked.round}` : "nothing yet"],
      ["problems a minute", history.pace === null ? "–" : shown(Math.round(history.pace)), "scored, over the last 50 /score"],
      ["rounds", shown(Math.max(state.rounds, last?.round ?? 0)), last ? `the last a ${last.kind}` : ""],
    ];
    const entries = tiles.map(([name, value, note]) => make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, note))));
    this.part("tiles").replaceChildren(...entries);
  }

  drawProblems() {
    const { problems, best, worst } = this.outline;
    this.part("problems-note").textContent = problems
      ? `${shown(problems)} in the ranking. A problem's name opens its history.` : "No problem was scored yet.";
    for (const [name, rows] of [["best", best], ["worst", worst]]) {
      const signature = JSON.stringify(rows);
      if (this[name] === signature || this.part(name).contains(document.activeElement)) continue;  // do not take the focus away
      this[name] = signature;
      this.part(name).replaceChildren(problemTable(this.run, name, rows));
    }
  }

  drawScorer() {
    const rows = this.metrics.rows().map(([title, count, half, most]) => [title, count, half === null ? "–" : duration(half), most === null ? "–" : duration(most)]);
    const pace = this.metrics.pace;
    const span = duration(Math.max(this.metrics.seconds, 1));
    this.part("scorer-note").textContent = `All runs, one process${pace === null ? "" : `; ${shown(Math.round(60 * pace))} problems a minute over the last ${span}`}. `
      + "Times are of the last minutes, or since its start where nothing was asked since.";
    this.part("scorer").replaceChildren(rows.length ? table("", ["part", "count", "median", "95% within"], rows) : make("p", {}, "It has scored nothing yet."));
  }
}

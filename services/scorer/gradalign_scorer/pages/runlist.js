// All runs that the key is for, the one changed last first.

import { getJson } from "./api.js";
import { ago, fill, make, shown } from "./dom.js";

const MOST = 200;
const EVERY = 5000;

const age = run => (run.validation_policy_version === null ? null : run.policy_version - run.validation_policy_version);

function row(run) {
  const link = make("a", { href: `#/runs/${encodeURIComponent(run.run_id)}`, className: "id", title: run.run_id }, run.run_id);
  const words = run.warnings.map(warning => warning.message).join("; ");
  const trust = run.kind === "products" ? run.rollout_reliability : run.reliability;
  const cells = [run.policy_version, age(run), run.coherence, trust, run.problems, run.rounds, ago(run.updated_at)];
  return make("tr", {}, make("th", { scope: "row" }, link), make("td", { className: "words" }, words || "none"),
    ...cells.map(value => make("td", {}, shown(value))));
}

export function showRuns(main, signal, live) {
  const part = fill("runs-view", main);
  document.title = "GradAlign: runs";
  async function load() {
    try {
      const { runs } = await getJson("runs", signal);
      // A link that has the focus keeps it: the list is drawn anew around it.
      const focused = document.activeElement?.getAttribute?.("href");
      part("rows").replaceChildren(...runs.slice(0, MOST).map(row));
      if (focused?.startsWith("#/runs/")) part("rows").querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
      part("frame").hidden = !runs.length;
      const count = runs.length > MOST ? `${runs.length} runs, the last ${MOST} of them here` : `${runs.length} run${runs.length > 1 ? "s" : ""}`;
      const text = runs.length ? count : "No runs yet: a run begins with its first request.";
      if (part("status").textContent !== text) part("status").textContent = text;
      live("on", "up to date");
    } catch (error) {
      if (signal.aborted) return;
      part("status").textContent = error.message;
      live("off", "waiting for the scorer");
    }
  }
  load();
  const timer = setInterval(() => { if (!document.hidden) load(); }, EVERY);
  const back = () => { if (!document.hidden) load(); };
  document.addEventListener("visibilitychange", back, { signal });
  signal.addEventListener("abort", () => clearInterval(timer));
}

// The first and the last of the ranking, and one problem with its history.

import { getJson, runPath } from "./api.js";
import { Chart } from "./charts.js";
import { make, shown, share, table } from "./dom.js";

const HEADS = ["problem", "alignment", "priority", "pass rate", "scored", "selected"];

export function problemTable(run, caption, rows) {
  return table("", HEADS, rows.map(row => [
    opener(run, row.problem_id), row.alignment, row.priority, share(row.pass_rate), row.times_scored, row.times_selected,
  ]));
}

function opener(run, problem) {
  const button = make("button", { type: "button", className: "link id", title: problem }, problem);
  button.addEventListener("click", () => show(run, problem));
  return button;
}

const HISTORY = {
  id: "problem", kind: "lines", title: "Alignment when it was scored", note: "the last scores that the scorer keeps", x: "policy version",
  series: [{ label: "alignment", tone: "a" }],
  data: history => (history.length > 1 ? {
    columns: [history.map(entry => entry.policy_version), history.map(entry => entry.alignment)],
    text: history.map(entry => `${shown(entry.alignment)} at ${entry.policy_version}`).join(", "),
  } : null),
  empty: "Scored once so far",
};

async function show(run, problem) {
  const dialog = document.getElementById("problem-dialog");
  const body = document.getElementById("problem-body");
  document.getElementById("problem-title").textContent = problem;
  body.replaceChildren(make("p", { role: "status" }, "Loading…"));
  dialog.showModal();
  let chart;
  dialog.addEventListener("close", () => chart?.close(), { once: true });
  try {
    const found = await getJson(runPath(run, "problems", problem));
    chart = new Chart(HISTORY);
    const facts = [["priority", found.priority], ["alignment", found.alignment], ["pass rate", share(found.pass_rate)],
      ["scored", `${found.times_scored} times`], ["selected", `${found.times_selected} times`], ["last scored at policy", found.policy_version]];
    // A policy version may have several scores; x must not fall.
    const history = found.history.filter(entry => entry.alignment !== null);
    if (found.belief) facts.push(["believed success rate", `${share(found.belief[0] / (found.belief[0] + found.belief[1]))}, Beta(${found.belief.map(shown).join(", ")})`]);
    const tiles = make("dl", { className: "tiles" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, shown(value)))));
    if (!history.length) return body.replaceChildren(tiles);
    body.replaceChildren(
      tiles,
      chart.element,
      table("History, oldest first", ["policy version", "alignment"], found.history.map(entry => [entry.policy_version, entry.alignment])),
    );
    chart.details.remove();
    chart.update(history);
  } catch (error) {
    body.replaceChildren(make("p", { role: "status" }, error.message));
  }
}

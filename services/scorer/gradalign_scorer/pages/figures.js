// What is plotted of a run: each figure takes its columns out of {history, state, outline} and says them in a sentence. Those
// ofGradients are not for a run of pass rates.

import { shown, share } from "./dom.js";

const per = (records, get) => records.map(record => get(record.summary, record) ?? null);
const rounds = records => records.map(record => record.round);
const lastOf = column => column.findLast(value => value !== null);
const percent = (u, ticks) => ticks.map(value => `${Math.round(100 * value)}%`);
const unit = [0, 1];

function overRounds(records, columns, say) {
  if (!records.length || columns.every(column => column.every(value => value === null))) return null;
  return { columns: [rounds(records), ...columns], text: say(...columns.map(lastOf)) };
}

// Counts in equal bins over the values, and the middle of each bin.
export function histogram(values, bins, low = Math.min(...values), high = Math.max(...values)) {
  const width = (high - low) / bins || 1;
  const counts = Array(bins).fill(0);
  for (const value of values) counts[Math.max(0, Math.min(bins - 1, Math.floor((value - low) / width)))] += 1;
  return [counts.map((_, i) => low + (i + 0.5) * width), counts];
}

const middle = values => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
const edges = (u, low, high) => { const step = u.data[0].length > 1 ? u.data[0][1] - u.data[0][0] : 1; return [low - step / 2, high + step / 2]; };
const counted = { yRange: (u, low, high) => [0, Math.max(1, 1.1 * (high || 0))] };

export const FIGURES = [
  {
    id: "alignment", ofGradients: true, kind: "lines", title: "Alignment over rounds", x: "round",
    note: "cosine of the scored problems with the validation gradient, per /score",
    series: [
      { label: "90%", tone: "band", band: 2, legend: "middle 80%" }, { label: "10%", tone: "band", edge: true },
      { label: "75%", tone: "band2", band: 4, legend: "middle 50%" }, { label: "25%", tone: "band2", edge: true },
      { label: "median", tone: "a" }, { label: "mean of the selected", tone: "b", dash: [6, 3] },
    ],
    data({ history }) {
      const records = history.of("score").filter(record => record.summary.alignment_quantiles);
      const at = i => per(records, summary => summary.alignment_quantiles[i]);
      const columns = [at(5), at(1), at(4), at(2), at(3), per(records, summary => summary.selected_alignment)];
      return overRounds(records, columns, (q90, q10, q75, q25, median, selected) =>
        `latest median ${shown(median)}, half of them between ${shown(q25)} and ${shown(q75)}, 80% between ${shown(q10)} and ${shown(q90)}`
        + (selected === undefined ? "" : `; mean of the selected ${shown(selected)}`));
    },
  },
  {
    id: "alignment-now", ofGradients: true, kind: "bars", title: "Alignment now", x: "alignment", xRange: edges, ...counted, xAxis: {},
    note: "as last scored, of at most 500 problems spread evenly over the ranking", series: [{ label: "problems", tone: "a" }],
    data({ outline }) {
      const values = (outline?.sample || []).map(row => row.alignment).filter(value => value !== null);
      if (!values.length) return null;
      const negative = values.filter(value => value < 0).length / values.length;
      return { columns: histogram(values, 20), text: `${values.length} problems, median ${shown(middle(values))}, ${share(negative)} below zero` };
    },
  },
  {
    id: "tenths", kind: "bars", title: "Selected, by place in the ranking", x: "tenth of the ranking, best first",
    note: "over the last 20 rounds that selected; problems never scored are in no tenth", ...counted, xRange: () => [0.4, 10.6],
    xAxis: { incrs: [1], space: 12, values: (u, ticks) => ticks.map(tick => (tick >= 1 && tick <= 10 ? String(tick) : "")) },
    series: [{ label: "selected", tone: "b" }], empty: "Nothing was selected yet",
    data({ history }) {
      const { counts, rounds: count, explored } = history.tenths();
      const total = counts.reduce((sum, n) => sum + n, 0);
      if (!total) return null;
      return {
        columns: [counts.map((_, i) => i + 1), counts],
        text: `${share(counts[0] / total)} of ${total} from the best tenth, ${share(counts.slice(0, 5).reduce((a, b) => a + b, 0) / total)} from the better half, over ${count} rounds; ${explored} explored`,
      };
    },
  },
  {
    id: "coherence", ofGradients: true, kind: "lines", title: "Coherence of the validation gradient", x: "round", yRange: () => unit,
    note: "1: all validation problems agree; 1/√n: they share nothing", series: [{ label: "coherence", tone: "a" }],
    data({ history }) {
      const records = history.of("refresh");
      return overRounds(records, [per(records, summary => summary.coherence)], latest => `latest ${shown(latest)}, of ${records.length} refreshes`);
    },
  },
  {
    id: "age", ofGradients: true, kind: "lines", title: "Age of the validation gradient", x: "round", series: [{ label: "policy versions", tone: "b" }],
    note: "policy versions since it was taken, at each /score", yRange: (u, low, high) => [0, Math.max(4, 1.15 * (high || 0))],
    data({ history }) {
      const records = history.of("score");
      return overRounds(records, [per(records, summary => summary.validation_age)], latest => `latest ${latest} policy versions`);
    },
  },
  {
    id: "signal", kind: "lines", title: "No signal, and pass rate", x: "round", yRange: () => unit, yValues: percent,
    note: "share of problems whose rollouts all had the same reward; mean reward",
    series: [{ label: "no signal", tone: "b" }, { label: "pass rate", tone: "c" }],
    data({ history }) {
      const records = history.of("score").filter(record => record.problems);
      const columns = [per(records, (summary, record) => summary.no_signal / record.problems), per(records, summary => summary.mean_pass_rate)];
      return overRounds(records, columns, (silent, passed) =>
        `latest: ${share(silent)} without a signal${passed === undefined ? "" : `, mean pass rate ${share(passed)}`}`);
    },
  },
  {
    id: "reliability", ofGradients: true, kind: "lines", title: "Reliability", x: "round", yRange: () => unit,
    note: "expected correlation of sketched with exact alignments, where below 0.9 a larger k helps; of products, with those of fresh rollouts",
    series: [{ label: "reliability", tone: "a" }, { label: "enough", tone: "muted", dash: [3, 4] }],
    data({ history, state }) {
      const records = history.of("score");
      if (state.kind === "products") {
        const found = per(records, summary => summary.rollout_reliability);
        if (found.every(value => value === null)) return null;
        return overRounds(records, [found, found.map(() => 0.1)], latest => `latest ${shown(latest)} over fresh rollouts`);
      }
      const values = per(records, summary => summary.reliability);
      const advised = history.of("score").at(-1)?.summary.advised_dim;
      if (values.every(value => value === null)) return null;
      return overRounds(records, [values, values.map(() => 0.9)], latest =>
        `latest ${shown(latest)}${advised ? `; k = ${advised} would do` : ""}`);
    },
  },
  {
    id: "pass-rate", ofGradients: true, kind: "points", title: "Pass rate against alignment", x: "pass rate", xRange: () => [-0.03, 1.03],
    xAxis: { values: percent }, xText: share, note: "of at most 500 problems spread evenly over the ranking",
    series: [{ label: "alignment", tone: "a" }], empty: "The trainer sends no pass rates",
    data({ outline }) {
      const rows = (outline?.sample || []).filter(row => row.pass_rate !== null && row.alignment !== null).toSorted((a, b) => a.pass_rate - b.pass_rate);
      if (!rows.length) return null;
      const between = rows.filter(row => row.pass_rate > 0 && row.pass_rate < 1).length / rows.length;
      return { columns: [rows.map(row => row.pass_rate), rows.map(row => row.alignment)], text: `${rows.length} problems, ${share(between)} of them neither always right nor always wrong` };
    },
  },
  {
    id: "staleness", kind: "bars", title: "Staleness of the scores", x: "policy versions since scored", xRange: edges, ...counted,
    note: "of at most 500 problems spread evenly over the ranking", series: [{ label: "problems", tone: "c" }], xText: value => shown(Math.round(value)),
    data({ outline, state }) {
      const ages = (outline?.sample || []).map(row => Math.max(0, state.policy_version - row.policy_version));
      if (!ages.length) return null;
      const most = Math.max(...ages);
      const columns = most < 20 ? histogram(ages, most + 1, -0.5, most + 0.5) : histogram(ages, 20, 0, most);
      return { columns, text: `median ${middle(ages)} policy versions, oldest ${most}` };
    },
  },
  {
    id: "pace", kind: "lines", title: "Throughput", x: "round", yRange: (u, low, high) => [0, 1.15 * (high || 1)],
    note: "problems scored a minute, over every 10 /score", series: [{ label: "problems a minute", tone: "a" }], empty: "Two rounds are needed",
    data({ history }) {
      const records = history.of("score");
      const values = records.map((record, i) => {
        const from = records[Math.max(0, i - 10)];
        if (i === 0 || record.at <= from.at) return null;
        const count = records.slice(Math.max(0, i - 10) + 1, i + 1).reduce((sum, one) => sum + one.problems, 0);
        return (60 * count) / (record.at - from.at);
      });
      return overRounds(records, [values], latest => `latest ${shown(latest)} problems a minute`);
    },
  },
];

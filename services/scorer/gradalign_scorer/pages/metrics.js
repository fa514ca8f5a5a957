// Latency and throughput of this scorer process, from the text that Prometheus scrapes.

const KEEP = 60;
const LINE = /^([a-z_]+)(?:\{([^}]*)\})? ([^ ]+)$/;

export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (match) found.set(match[2] ? `${match[1]}{${match[2]}}` : match[1], Number(match[3]));
  }
  return found;
}

function buckets(sample, name, label) {
  const prefix = `${name}_bucket{`;
  const found = [];
  for (const [key, value] of sample) {
    if (!key.startsWith(prefix) || !key.includes(label)) continue;
    const edge = /le="([^"]+)"/.exec(key)[1];
    found.push([edge === "+Inf" ? Infinity : Number(edge), value]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}

// The value that a share of the observations lie below, interpolated within its bucket; null without observations.
export function quantile(cumulative, share) {
  const total = cumulative.at(-1)?.[1] || 0;
  if (!total) return null;
  let low = 0, below = 0;
  for (const [edge, count] of cumulative) {
    if (count >= share * total) {
      return edge === Infinity ? low : low + (edge - low) * ((share * total - below) / Math.max(count - below, 1e-9));
    }
    [low, below] = [edge, count];
  }
  return low;
}

// A few minutes of samples: figures are of that time where something happened in it, else since the process began.
export class Metrics {
  samples = [];

  add(text) {
    this.samples = [...this.samples, { at: Date.now() / 1000, values: parseMetrics(text) }].slice(-KEEP);
  }

  rows() {
    const stages = ["receive", "decode", "load", "compute", "commit"].map(stage =>
      [`/score, ${stage}`, "gradalign_score_duration_seconds", `stage="${stage}"`]);
    const whole = ["gradalign_request_duration_seconds", 'route="/score"'];
    return [["/score, whole", ...whole], ["/v1/score, whole", whole[0], 'route="/v1/score"'], ...stages]
      .map(([title, name, label]) => [title, this.#window(name, label)])
      .filter(([, cumulative]) => cumulative.at(-1)?.[1])
      .map(([title, cumulative]) => [title, cumulative.at(-1)[1], quantile(cumulative, 0.5), quantile(cumulative, 0.95)]);
  }

  // Problems a second between the first and the last sample.
  get pace() {
    const [first, last] = [this.samples[0], this.samples.at(-1)];
    if (!first || last.at - first.at < 1) return null;
    const name = "gradalign_scored_problems_total";
    const count = (last.values.get(name) ?? 0) - (first.values.get(name) ?? 0);
    return count >= 0 ? count / (last.at - first.at) : null;  // below 0 behind a proxy that asks several scorers
  }

  get seconds() {
    return this.samples.length ? this.samples.at(-1).at - this.samples[0].at : 0;
  }

  #window(name, label) {
    const now = buckets(this.samples.at(-1).values, name, label);
    const before = new Map(buckets(this.samples[0].values, name, label));
    const recent = now.map(([edge, count]) => [edge, count - (before.get(edge) || 0)]);
    return recent.at(-1)?.[1] > 0 && recent.every(([, count]) => count >= 0) ? recent : now;
  }
}

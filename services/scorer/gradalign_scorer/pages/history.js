// The rounds that the page knows of: the last thousand, however long the run.

const MOST = 1000;

export class History {
  rounds = [];

  get last() {
    return this.rounds.at(-1);
  }

  // What Last-Event-ID takes: a restored run counts the same numbers again, at other times.
  get place() {
    return this.last ? `${this.last.round}-${Math.floor(this.last.at * 1000)}` : "";
  }

  clear() {
    this.rounds = [];
  }

  add(records) {
    const last = this.last?.round ?? 0;
    const fresh = records.filter(record => record.round > last);
    if (fresh.length) this.rounds = this.rounds.concat(fresh).slice(-MOST);
    return fresh.length;
  }

  of(kind) {
    return this.rounds.filter(record => record.kind === kind);
  }

  // Of the latest round that has it.
  latest(name) {
    return this.rounds.findLast(record => record.summary[name] !== undefined)?.summary[name] ?? null;
  }

  // Sum over the recent /score requests of a figure, as a share of their problems.
  share(name, count = 20) {
    const recent = this.of("score").slice(-count);
    const problems = recent.reduce((sum, record) => sum + record.problems, 0);
    return problems ? recent.reduce((sum, record) => sum + (record.summary[name] || 0), 0) / problems : null;
  }

  // Counts by tenth of the ranking over the recent rounds that selected, and the rounds they are of.
  tenths(count = 20) {
    const recent = this.rounds.filter(record => record.selected && record.summary.selected_tenths).slice(-count);
    const counts = Array(10).fill(0);
    for (const record of recent) record.summary.selected_tenths.forEach((n, i) => { counts[i] += n; });
    return { counts, rounds: recent.length, explored: recent.reduce((sum, record) => sum + (record.summary.explored || 0), 0) };
  }

  // Problems scored a minute over the recent rounds; every replica's work is in it.
  get pace() {
    const recent = this.of("score").slice(-50);
    const seconds = recent.length > 1 ? recent.at(-1).at - recent[0].at : 0;
    return seconds > 0 ? (60 * recent.slice(1).reduce((sum, record) => sum + record.problems, 0)) / seconds : null;
  }
}

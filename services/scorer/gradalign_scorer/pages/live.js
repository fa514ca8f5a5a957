// Follows a run: its rounds so far, then each as it is committed, through lost connections and scorers that come and go.

import { ApiError, events, getJson, runPath } from "./api.js";

const FIRST = 500;
const LONGEST_WAIT = 15000;

const pause = (ms, signal) => new Promise(done => {
  const timer = setTimeout(done, ms);
  signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
});

async function load(run, history, signal) {
  const state = await getJson(runPath(run), signal);
  const { rounds } = await getJson(`${runPath(run, "rounds")}?after=${Math.max(0, state.rounds - FIRST)}&limit=${FIRST}`, signal);
  history.clear();
  history.add(rounds);
  return state;
}

async function more(run, history, signal) {
  const { rounds } = await getJson(`${runPath(run, "rounds")}?after=${history.last?.round ?? 0}&limit=${FIRST}`, signal);
  history.add(rounds);
}

// tell(what): "loaded", "live", "rounds", "waiting", "gone"; the error is told along with the latter two.
export async function follow(run, history, signal, tell) {
  let wait = 1000, loaded = false;
  while (!signal.aborted) {
    try {
      if (!loaded) {
        tell("loaded", await load(run, history, signal));
        loaded = true;
      }
      for await (const batch of events(runPath(run, "events"), history.place, signal)) {
        wait = 1000;
        tell("live");
        const names = batch.map(event => event.name);
        if (names.includes("gone")) return tell("gone", new ApiError(404, "the run was deleted"));
        if (names.includes("restart")) tell("loaded", await load(run, history, signal));
        else if (history.add(batch.filter(event => event.name === "round").map(event => JSON.parse(event.data)))) tell("rounds");
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 404 || error.status === 403 || error.status === 401) return tell("gone", error);
      tell("waiting", error);
      // Without a stream (429, a proxy that does not pass it) the page asks now and then.
      if (loaded) await more(run, history, signal).then(() => tell("rounds"), () => {});
      await pause(wait, signal);
      wait = Math.min(2 * wait, LONGEST_WAIT);
      continue;
    }
    await pause(500, signal);  // the scorer ended the stream in good order
  }
}

// Which view is shown, by the address's hash, and the dialogs that any view may need.

import { hasKey, setKey } from "./api.js";
import { make } from "./dom.js";
import { showRuns } from "./runlist.js";
import { RunView } from "./runview.js";

const byId = id => document.getElementById(id);
let shown = new AbortController();

function live(state, text) {
  byId("live").classList.toggle("on", state === "on");
  if (byId("live").textContent !== text) byId("live").textContent = text;
}

function route(moved) {
  if (location.hash && !location.hash.startsWith("#/")) return;  // the skip link
  shown.abort();
  shown = new AbortController();
  live("off", "");
  const run = /^#\/runs\/(.+)$/.exec(location.hash)?.[1];
  try {
    if (run) new RunView(byId("main"), decodeURIComponent(run), shown.signal, live);
    else showRuns(byId("main"), shown.signal, live);
    if (moved) byId("main").querySelector("h1").focus();  // a screen reader says where it is now
  } catch (error) {
    byId("main").replaceChildren(make("p", { role: "status" }, error.message));
  }
}

let declined = false;  // views go on asking, and are refused; the dialog need not follow each time

function askForKey(reason) {
  if (byId("key-dialog").open) return;
  byId("key-reason").textContent = reason;
  byId("key-dialog").showModal();
  byId("key-input").focus();
}

byId("key-button").addEventListener("click", () => askForKey("Reading is enough. It is kept in this tab until you close it; an empty one forgets it."));
document.addEventListener("keyneeded", () => declined || askForKey(hasKey()
  ? "The scorer does not accept the key of this tab any more. Give another."
  : "The scorer asks for an API key. Reading is enough. It is kept in this tab until you close it."));
byId("key-form").addEventListener("submit", event => {
  event.preventDefault();
  setKey(byId("key-input").value.trim());
  byId("key-input").value = "";
  byId("key-dialog").close("given");
  route(false);
});
byId("key-dialog").addEventListener("close", () => {
  declined = byId("key-dialog").returnValue !== "given";
  byId("key-dialog").returnValue = "";
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("problem-close").addEventListener("click", () => byId("problem-dialog").close());
addEventListener("hashchange", () => route(true));
route(false);

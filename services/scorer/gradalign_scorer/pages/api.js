// The scorer's routes. A key that was typed here is sent as a bearer token; EventSource could not send it, fetch can.

const SLOT = "gradalign.key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(SLOT));

export function setKey(key) {
  if (key) sessionStorage.setItem(SLOT, key);
  else sessionStorage.removeItem(SLOT);
}

async function ask(path, headers, signal) {
  const key = sessionStorage.getItem(SLOT);
  const reply = await fetch(path, { headers: { ...headers, ...(key && { Authorization: `Bearer ${key}` }) }, signal, cache: "no-store" });
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => null);
  const error = new ApiError(reply.status, body?.error?.message || `${path} answered ${reply.status}`);
  if (reply.status === 401) document.dispatchEvent(new CustomEvent("keyneeded"));
  throw error;
}

export const getJson = async (path, signal) => (await ask(path, { Accept: "application/json" }, signal)).json();
export const getText = async (path, signal) => (await ask(path, { Accept: "text/plain" }, signal)).text();
export const runPath = (run, ...rest) => ["runs", run, ...rest].map(encodeURIComponent).join("/");

function parsed(block) {
  const event = { name: "", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 1) continue;
    const field = line.slice(0, colon);
    if (field === "event") event.name = line.slice(colon + 1).trim();
    if (field === "data") event.data += line.slice(colon + 1);
  }
  return event.name ? event : null;
}

// Batches of events, as they come off the wire.
export async function* events(path, place, signal) {
  const headers = { Accept: "text/event-stream", ...(place && { "Last-Event-ID": place }) };
  const reply = await ask(path, headers, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  yield [];  // connected
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    yield blocks.map(parsed).filter(Boolean);
  }
}

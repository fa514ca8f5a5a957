// Elements, and figures as people read them. Everything that a run or a problem is called goes in as text.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function fill(template, host) {
  host.replaceChildren(document.getElementById(template).content.cloneNode(true));
  return name => host.querySelector(`[data-part="${name}"]`);
}

export function table(caption, heads, rows) {
  const head = make("tr", {}, ...heads.map(text => make("th", { scope: "col" }, text)));
  const body = rows.map(cells => make("tr", {}, ...cells.map((cell, i) =>
    make(i ? "td" : "th", i ? {} : { scope: "row" }, cell instanceof Node ? cell : shown(cell)))));
  return make("table", {}, ...(caption ? [make("caption", {}, caption)] : []), make("thead", {}, head), make("tbody", {}, ...body));
}

export function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3);
}

export const share = value => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`);

export function duration(seconds) {
  if (seconds < 0.001) return `${(1e6 * seconds).toFixed(0)} µs`;
  if (seconds < 1) return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

export const ago = at => {
  const seconds = Date.now() / 1000 - at;
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
};

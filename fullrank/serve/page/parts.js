// Pieces of the page. Text is written as text, never as markup.

export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

export function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(svg.namespaceURI, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const spoken = (name) => name.replaceAll("_", " ");
export const percent = (p) => `${p < 0.01 ? number(100 * p) : (100 * p).toFixed(2)}%`;
export const number = (x) => x.toLocaleString("en", { maximumSignificantDigits: 3 });
export const count = (n) => n.toLocaleString("en");

// A problem of the server, in its five parts.
export function box(problem, id) {
  const parts = ["where", "found", "expected", "fix"].filter((name) => problem[name]);
  const lines = parts.flatMap((name) => [h("dt", {}, name), h("dd", {}, problem[name])]);
  return h("div", { class: "problem", id }, h("strong", {}, problem.title), h("dl", {}, ...lines));
}

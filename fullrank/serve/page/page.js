// The page of `fullrank serve`: what a person types goes to /v1/rank and /v1/explain of the same
// server, and their answers are drawn.

import { box, h, icon, percent, spoken } from "./parts.js";
import { ask, has_token, Refused, use_token } from "./server.js";
import { hint, raw, shown } from "./values.js";

const PAUSE_MS = 250; // of typing, until scores are asked for
const FIRST_TOKENS = 12; // shown before "show all"
const METRICS = {
  auc: ["AUC", "how often a row with the event is ranked above one without; 0.5 is chance"],
  gauc: ["AUC in groups", "the same within a group, such as a user or a request"],
  logloss: ["Log-loss", "how surprised the model is by what happened; lower is better"],
  ne: ["Entropy ratio", "log-loss against always saying the average; below 1 is better"],
  ece: ["Calibration error", "distance between promised and true rates; 0 is best"],
  calibration: ["Predicted / true", "predicted events for each true one; 1 is best"],
};

const $ = (id) => document.getElementById(id);
let model; // GET /v1/model
let fields; // {user: [field], candidate: [field]}
let user = {}; // raw column -> text in its input
let candidates = []; // {id, values: raw column -> text}
let chosen = null; // id of the candidate that is explained
let before = new Map(); // id -> rank when the example was picked
let next_id = 0;
let asked = new AbortController();
let explained = new AbortController();
let timer;

// ---- what is served

function describe(name, examples) {
  const column = model.columns.find((c) => (c.fields ?? [c.name]).includes(name));
  const values = examples.flat().filter((v) => v !== null && v !== undefined);
  const list = ["history", "tags", "vector"].includes(column?.kind);
  const measure = ["number", "vector"].includes(column?.kind);
  return {
    name, list, measure, optional: column?.optional ?? true,
    whole: values.length > 0 && values.every((v) => typeof v === "number"),
    known: column?.kind === "category" ? [...new Set(values.map(String))] : [],
    hint: hint(column),
  };
}

function learn() {
  const { rank, score } = model.example;
  const column = (name) => describe(name, score.rows.map((row) => row[name]));
  const columns = (row) => {
    const all = Object.keys(row).map(column);
    return [...all.filter((f) => !f.list), ...all.filter((f) => f.list)];
  };
  fields = { user: columns(rank.user), candidate: columns(rank.candidates[0]) };
}

// ---- inputs

function input(field, texts, id, label) {
  const node = h("input", {
    id, autocomplete: "off", spellcheck: "false", "aria-label": label,
    inputmode: field.measure && !field.list ? "decimal" : undefined,
    list: field.known.length ? `known-${field.name}` : undefined,
  });
  node.value = texts[field.name];
  node.addEventListener("input", () => {
    texts[field.name] = node.value;
    later();
  });
  return node;
}

function datalist(field) {
  const options = field.known.map((value) => h("option", { value }));
  return options.length ? h("datalist", { id: `known-${field.name}` }, ...options) : null;
}

function draw_user() {
  const nodes = fields.user.map((f) => {
    const id = `user.${f.name}`;
    const name = h("label", { for: id }, spoken(f.name));
    if (f.optional) name.append(h("span", { class: "optional" }, " optional"));
    const node = input(f, user, id);
    node.setAttribute("aria-describedby", `${id}.hint`);
    const line = h("span", { class: "hint", id: `${id}.hint` }, f.hint);
    return h("div", { class: f.list ? "field long" : "field" }, name, node, line, datalist(f));
  });
  $("user").replaceChildren(...nodes);
}

function draw_candidates() {
  const names = fields.candidate.map((f) => h("th", { scope: "col" }, spoken(f.name), datalist(f)));
  const action = h("th", { scope: "col" }, h("span", { class: "skip" }, "Change the list"));
  const head = h("tr", {}, h("th", { scope: "col" }, "#"), ...names, action);
  const rows = candidates.map((c, place) => {
    const cells = fields.candidate.map((f) => {
      const id = `candidates[${place}].${f.name}`;
      return h("td", {}, input(f, c.values, id, `${spoken(f.name)}, candidate ${place + 1}`));
    });
    const copy = h("button", {
      type: "button", class: "icon", title: "Duplicate", "aria-label": `Duplicate candidate ${place + 1}`,
      onclick: () => change(place + 1, 0, { id: next_id++, values: { ...c.values } }),
      disabled: candidates.length >= model.max_rows,
    }, icon("M6 6h7v7H6zM3.5 10H3V3h7v.5"));
    const remove = h("button", {
      type: "button", class: "icon", title: "Remove", "aria-label": `Remove candidate ${place + 1}`,
      onclick: () => change(place, 1), disabled: candidates.length === 1,
    }, icon("M4 4l8 8M12 4l-8 8"));
    const number = h("td", { class: "tight" }, String(place + 1));
    return h("tr", { id: `row-${place}` }, number, ...cells, h("td", { class: "tight" }, copy, remove));
  });
  $("candidates").replaceChildren(h("thead", {}, head), h("tbody", {}, ...rows));
  $("add").disabled = candidates.length >= model.max_rows;
}

function change(place, removed, ...added) {
  candidates.splice(place, removed, ...added);
  draw_candidates();
  const near = added.length ? place : Math.min(place, candidates.length - 1);
  const first = fields.candidate[0].name;
  document.getElementById(`candidates[${near}].${first}`)?.focus();
  later(0);
}

function pick(place) {
  const row = model.example.score.rows[place];
  const texts = (list, values) => Object.fromEntries(list.map((f) => [f.name, shown(values[f.name])]));
  user = texts(fields.user, row);
  candidates = model.example.rank.candidates.map((values) => (
    { id: next_id++, values: texts(fields.candidate, values) }
  ));
  chosen = null;
  before = new Map();
  draw_user();
  draw_candidates();
  later(0);
}

// ---- answers

function later(pause = PAUSE_MS) {
  clearTimeout(timer);
  asked.abort(); // what it would say is out of date
  explained.abort();
  $("results").classList.add("stale");
  timer = setTimeout(rank, pause);
}

async function rank() {
  const mine = (asked = new AbortController());
  const shown_candidates = [...candidates];
  const body = { candidates: shown_candidates.map((c) => raw(fields.candidate, c.values)) };
  if (fields.user.length) body.user = raw(fields.user, user);
  try {
    const answer = await ask(`v1/rank?label=${encodeURIComponent($("label").value)}`, body, mine.signal);
    calm();
    draw_ranking(answer, shown_candidates);
    if (answer.model !== model.fingerprint) draw_head(await ask("v1/model", null, mine.signal));
    explain();
  } catch (error) {
    if (error.name !== "AbortError") complain(error);
  }
}

function draw_ranking(answer, list) {
  const labels = Object.keys(answer.scores);
  const order = answer.order.map((place) => list[place]);
  if (!before.size) order.forEach((c, i) => before.set(c.id, i));
  if (!list.some((c) => c.id === chosen)) chosen = order[0].id;
  const most = Object.fromEntries(labels.map((n) => [n, Math.max(...answer.scores[n]) || 1]));
  const heads = ["Rank", "#", "Candidate", ...labels.map(spoken)].map((t) => h("th", { scope: "col" }, t));
  const rows = order.map((c, i) => {
    const [first, ...others] = named_by(c);
    const name = h("button", { type: "button", class: "pick", "aria-pressed": String(c.id === chosen) },
      first, h("span", {}, others.slice(0, 2).map((t) => ` · ${t}`).join("")));
    const cells = labels.map((n) => {
      const p = answer.scores[n][i];
      const bar = h("i");
      bar.style.width = `${(100 * p) / most[n]}%`;
      const kind = n === answer.label ? "score" : "score others";
      const value = h("span", { class: "number", "data-score": p, title: String(p) }, percent(p));
      return h("td", {}, h("div", { class: kind }, h("div", { class: "bar", "aria-hidden": "true" }, bar), value));
    });
    const choose = () => select(c.id);
    const number = h("td", { class: "tight" }, String(list.indexOf(c) + 1));
    const place = h("td", {}, String(i + 1), moved(c.id, i));
    return h("tr", { "data-id": c.id, class: c.id === chosen ? "chosen" : "", onclick: choose }, place, number, h("td", {}, name), ...cells);
  });
  const focused = document.activeElement?.closest?.("#ranked tr")?.dataset.id;
  $("ranked").replaceChildren(h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows));
  if (focused !== undefined) $("ranked").querySelector(`tr[data-id="${focused}"] .pick`)?.focus();
  $("results").classList.remove("stale");
  $("said").textContent = `First: ${rows[0].querySelector(".pick").textContent}, ${percent(answer.scores[answer.label][0])}.`;
}

// What a person knows a candidate by: its names before its measures.
function named_by(candidate) {
  const all = [...fields.candidate.filter((f) => !f.measure), ...fields.candidate.filter((f) => f.measure)];
  return all.map((f) => `${spoken(f.name)} ${candidate.values[f.name] || "empty"}`);
}

function moved(id, rank) {
  const by = (before.get(id) ?? rank) - rank;
  if (!by) return null;
  const way = by > 0 ? "up" : "down";
  const text = `${way} ${Math.abs(by)} since the example was picked`;
  const mark = `${by > 0 ? "▲" : "▼"}${Math.abs(by)}`;
  return h("span", { class: `moved ${way}`, title: text, role: "img", "aria-label": text }, mark);
}

function select(id) {
  chosen = id;
  for (const row of $("ranked").tBodies[0].rows) {
    const is_it = row.dataset.id === String(id);
    row.classList.toggle("chosen", is_it);
    row.querySelector(".pick").setAttribute("aria-pressed", String(is_it));
  }
  explain();
}

async function explain() {
  explained.abort();
  const mine = (explained = new AbortController());
  const candidate = candidates.find((c) => c.id === chosen);
  if (!candidate) return;
  const row = { ...raw(fields.user, user), ...raw(fields.candidate, candidate.values) };
  try {
    const path = `v1/explain?label=${encodeURIComponent($("label").value)}`;
    draw_tokens(await ask(path, { row }, mine.signal), candidate);
  } catch (error) {
    if (error.name !== "AbortError") $("tokens").replaceChildren(box(error.problem ?? { title: String(error) }));
  }
}

// A history with one list is known by the name of that list, as in its input.
function token_name(column) {
  const lists = model.columns.find((c) => c.name === column)?.fields ?? [];
  return spoken(lists.length === 1 ? lists[0] : column);
}

function draw_tokens(answer, candidate, all = false) {
  const lead = h("p", { class: "lead" }, h("b", {}, named_by(candidate)[0]), " scores ", h("b", {}, percent(answer.probability)),
    ` for ${spoken(answer.label)}. Each bar is how far one value moved that score, found by leaving it out.`);
  const tokens = all ? answer.tokens : answer.tokens.slice(0, FIRST_TOKENS);
  const most = Math.max(...answer.tokens.map((t) => Math.abs(t.change)), 1e-12);
  const rows = tokens.map((t) => {
    const by = -t.change; // what its presence does
    const bar = h("i", { class: by < 0 ? "down" : "up" });
    bar.style.width = `${(50 * Math.abs(by)) / most}%`;
    const event = t.event === null ? "" : `, event ${t.event + 1}`;
    const head = h("th", { scope: "row" }, h("span", { class: "what" }, token_name(t.column) + event), h("span", { class: "value" }, t.value));
    const size = Math.abs(by).toFixed(3);
    const sign = Number(size) === 0 ? "" : by > 0 ? "+" : "−";
    const moved_by = h("td", { class: "number odds", "data-change": t.change }, sign + size);
    const without = h("td", { class: "number", "data-score": t.probability_without }, percent(t.probability_without));
    const way = h("td", { class: "axis", "aria-hidden": "true" }, h("div", { class: "way" }, bar));
    return h("tr", { "data-column": t.column, "data-event": t.event ?? "" }, head, way, moved_by, without);
  });
  const ways = h("th", { class: "axis", "aria-hidden": "true" }, h("div", {}, h("span", {}, "◂ lowers"), h("span", {}, "raises ▸")));
  const heads = [h("th", { scope: "col" }, "Value"), ways,
    h("th", { scope: "col", class: "number odds", title: "change of the log-odds, before calibration" }, "Log-odds"),
    h("th", { scope: "col", class: "number" }, "Without it")];
  const table = h("table", { class: "chart" }, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows));
  const nodes = [lead, h("div", { class: "scroll" }, table)];
  if (tokens.length < answer.tokens.length) {
    const show = () => draw_tokens(answer, candidate, true);
    nodes.push(h("button", { type: "button", class: "more", onclick: show }, `Show all ${answer.tokens.length}`));
  }
  if (answer.events_not_tried) {
    nodes.push(h("p", { class: "soft small more" }, `${answer.events_not_tried} older events were not tried one by one.`));
  }
  $("tokens").replaceChildren(...nodes);
}

// ---- what went wrong

function calm() {
  for (const node of document.querySelectorAll("#work .problem, #work tr.wrong")) node.remove();
  for (const node of document.querySelectorAll("[aria-invalid]")) {
    node.removeAttribute("aria-invalid");
    const rest = (node.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id !== "wrong");
    if (rest.join("")) node.setAttribute("aria-describedby", rest.join(" "));
    else node.removeAttribute("aria-describedby");
  }
  $("trouble").replaceChildren();
  $("notice").replaceChildren();
}

// Finds the input that a problem names: user.age, candidates[2].ad, column 'age', row 2.
function named({ where = "", found = "" }) {
  const all = [...document.querySelectorAll("#work input")];
  const exactly = (id) => all.find((node) => node.id === id);
  const longest = all.filter((n) => where === n.id || where.startsWith(`${n.id}[`)).pop();
  if (longest) return longest;
  const lacks = /^no '(.*)'$/.exec(found);
  if (lacks) return exactly(`${where}.${lacks[1]}`);
  const [, column, row = "0"] = /column '(.*?)'(?:, row (\d+))?/.exec(where) ?? [];
  return column && (exactly(`user.${column}`) ?? exactly(`candidates[${row}].${column}`));
}

function complain(error) {
  calm();
  if (!(error instanceof Refused)) {
    $("trouble").replaceChildren(box({ title: "the page failed", found: String(error), fix: "load it again" }));
    throw error;
  }
  const { problem } = error;
  if (problem.status === 401) return lock(problem);
  const node = named(problem);
  const again = h("button", { type: "button", onclick: () => (node ? node.focus() : later(0)) }, node ? "Show" : "Try again");
  $("notice").replaceChildren(node ? "Not scored: one value is wrong." : "Not scored.", again);
  if (!node) return $("trouble").replaceChildren(box(problem));
  node.setAttribute("aria-invalid", "true");
  const described = node.getAttribute("aria-describedby");
  node.setAttribute("aria-describedby", described ? `${described} wrong` : "wrong");
  const row = node.closest("tr");
  if (!row) return node.parentElement.after(box(problem, "wrong"));
  row.after(h("tr", { class: "wrong" }, h("td", { colspan: fields.candidate.length + 2 }, box(problem, "wrong"))));
}

// ---- the head, and the beginning

function draw_head(said) {
  model = said;
  document.title = `${said.model} · fullrank`;
  $("model").textContent = said.model;
  const recipe = said.provenance?.recipe ?? {};
  const made = recipe.dataset ? ` · trained on ${recipe.dataset}` : "";
  const date = said.provenance?.date ? ` · ${said.provenance.date.slice(0, 10)}` : "";
  const print = h("code", { title: "fingerprint of the artefact that is served" }, said.fingerprint);
  $("origin").replaceChildren(print, made + date);
  const known = Object.keys(METRICS).filter((name) => typeof said.metrics[name] === "number");
  const stats = known.map((name) => h("div", { title: METRICS[name][1] },
    h("dt", {}, METRICS[name][0]), h("dd", {}, said.metrics[name].toFixed(3))));
  $("metrics").replaceChildren(...stats);
  const calibrated = said.calibrated.length ? `Calibrated: ${said.calibrated.map(spoken).join(", ")}.` : "Scores are not calibrated.";
  $("foot").textContent = `${calibrated} Metrics are of the held-out split. fullrank ${said.versions.fullrank}.`;
}

function lock(problem) {
  $("gate").hidden = false;
  $("work").hidden = true;
  $("model").textContent = "A model";
  $("gate-problem").replaceChildren(...(has_token() ? [box(problem)] : []));
  $("token").focus();
}

async function start() {
  try {
    draw_head(await ask("v1/model"));
  } catch (error) {
    return complain(error);
  }
  calm();
  learn();
  const rows = model.example.score.rows;
  const first = fields.user.find((f) => !f.list)?.name;
  const names = rows.map((row, i) => (first ? `${spoken(first)} ${shown(row[first])}` : `number ${i + 1}`));
  $("example").replaceChildren(...names.map((name, i) => h("option", { value: i }, name)));
  $("label").replaceChildren(...model.labels.map((label) => h("option", { value: label.name }, spoken(label.name))));
  $("label-choice").hidden = model.labels.length < 2;
  $("user-card").hidden = !fields.user.length;
  $("gate").hidden = true;
  $("gate").reset();
  $("gate-problem").replaceChildren();
  $("work").hidden = false;
  pick(0);
}

$("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  use_token($("token").value.trim());
  start();
});
$("example").addEventListener("change", () => pick(Number($("example").value)));
$("reset").addEventListener("click", () => pick(Number($("example").value)));
$("label").addEventListener("change", () => {
  before = new Map();
  later(0);
});
$("add").addEventListener("click", () => {
  const empty = Object.fromEntries(fields.candidate.map((f) => [f.name, ""]));
  change(candidates.length, 0, { id: next_id++, values: empty });
});
$("ranked").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const all = [...$("ranked").querySelectorAll(".pick")];
  const at = all.indexOf(document.activeElement);
  if (!step || at < 0 || !all[at + step]) return;
  event.preventDefault();
  all[at + step].focus();
});
start();

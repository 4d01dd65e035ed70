// Texts of inputs to values of a request, and back.

import { count } from "./parts.js";

// Whole numbers that a float cannot hold stay text; the server reads the text of an id as the id.
export function exact(key, value, context) {
  const digits = typeof value === "number" && /^-?\d+$/.test(context?.source ?? "");
  return digits && !Number.isSafeInteger(value) ? context.source : value;
}

// A comma separates; quotes keep one that belongs to a value.
function split(text) {
  const found = [...text.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^,]*))\s*(,|$)/g)];
  const end = found.findIndex((m) => m[3] === "");
  const parts = found.slice(0, end + 1).map((m) => m[1]?.replaceAll('""', '"') ?? m[2].trim());
  return parts.at(-1) === "" ? parts.slice(0, -1) : parts; // a comma that was typed just now
}

const quoted = (v) => (/[",]|^\s|\s$/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : String(v));

export function shown(value) {
  if (value === null || value === undefined) return "";
  return Array.isArray(value) ? value.map((v) => quoted(v ?? "")).join(", ") : String(value);
}

// What is no number goes out as it was typed: the server says what is wrong with it.
function scalar(field, text) {
  if (text === "") return null;
  const value = Number(text);
  if (field.measure) return Number.isFinite(value) ? value : text;
  return field.whole && /^-?\d+$/.test(text) && Number.isSafeInteger(value) ? value : text;
}

export function typed(field, text) {
  if (!field.list) return scalar(field, text.trim());
  const values = split(text).map((part) => scalar(field, part));
  return values.length ? values : null;
}

export const raw = (list, texts) => Object.fromEntries(list.map((f) => [f.name, typed(f, texts[f.name])]));

export function hint(column) {
  const known = count(column?.known_values ?? 0);
  switch (column?.kind) {
    case "category": return `${known} known values`;
    case "number": return "a number";
    case "tags": return `values with commas between; ${known} known`;
    case "vector": return "numbers with commas between";
    case "history": return `oldest first, commas between; the newest ${column.max_length} are read`;
    default: return "unix seconds";
  }
}

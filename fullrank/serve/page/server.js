// Requests to the server that the page is from.

import { exact } from "./values.js";

let token = ""; // kept in memory alone

export const use_token = (text) => (token = text);
export const has_token = () => token !== "";

// What the server, or the way to it, has against a request.
export class Refused extends Error {
  constructor(problem) {
    super(problem.title);
    this.problem = problem;
  }
}

export async function ask(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const text = body && JSON.stringify(body);
  let answer, said;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: text, signal });
    said = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({
      title: "the server does not answer", where: location.host, found: error.message,
      expected: "an answer", fix: "see that the server runs, then try again",
    });
  }
  let value;
  try {
    value = JSON.parse(said, exact);
  } catch {
    value = { title: "the answer is no JSON", found: `status ${answer.status}`, where: path };
    throw new Refused(value);
  }
  if (!answer.ok) throw new Refused(value);
  return value;
}

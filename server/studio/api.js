// api: what the page asks the server. Every address is relative, so that a proxy may have it under any path.

import { session } from "./dom.js";

// Milliseconds of reading at a time.
const LONGEST = 20;

const ROOT = new URL("../", document.baseURI);

export class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const events = new EventTarget();

let key = session.get("key") ?? "";

export const hasKey = () => key !== "";

export function useKey(given) {
  key = given;
  session.set("key", given || null);
}

async function request(path, { body, signal, method, headers } = {}) {
  const sent = { Accept: "application/json", ...headers };
  const used = key;
  if (used) sent.Authorization = `Bearer ${used}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, ROOT), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached.");
  }
  if (response.ok) return response;
  const reason = await reasonOf(response);
  // Another answer may have brought a new key meanwhile.
  if (response.status === 401 && used === key) events.dispatchEvent(new CustomEvent("key", { detail: { reason, wrong: used !== "" } }));
  throw new Trouble(reason, response.status);
}

async function reasonOf(response) {
  const text = await response.text().catch(() => "");
  try {
    const said = JSON.parse(text);
    const found = said.error?.message ?? said.message ?? said.detail;
    if (typeof found === "string" && found) return found;
  } catch {}
  return text.length > 0 && text.length < 500 ? text : `The server answered with status ${response.status}.`;
}

export const get = async (path, options) => (await request(path, options)).json();

export const post = async (path, body, options) => (await request(path, { ...options, body })).text();

// Lets the browser do what else there is: what has come already is read without a pause. A timer waits in hidden tabs.
const others = () =>
  new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (port1.close(), done());
    port2.postMessage(null);
  });

async function* parts(response, separator) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (let since = performance.now(); ; ) {
      if (performance.now() - since > LONGEST) {
        await others();
        since = performance.now();
      }
      const { done, value } = await reader.read();
      if (done) break;
      const found = (buffer + value).split(separator);
      buffer = found.pop();
      yield* found;
    }
    if (buffer.trim()) yield buffer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The connection was cut.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Lines of JSON, as they come.
export async function* lines(path, signal) {
  for await (const line of parts(await request(path, { method: "POST", signal }), "\n")) if (line) yield JSON.parse(line);
}

// A chat: the composition that was chosen, if one had to be, and the chunks of its answer.
export async function chat(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  const response = await request("v1/chat/completions", { body: asked, signal, headers: { Accept: "text/event-stream" } });
  return { chosen: response.headers.get("X-Layerloom-Model"), chunks: chunks(response) };
}

async function* chunks(response) {
  for await (const event of parts(response, /\r?\n\r?\n/)) {
    const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
    if (!data || data === "[DONE]") continue;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Trouble(chunk.error.message ?? "The server ended the answer with an error.", chunk.error.code);
    yield chunk;
  }
}

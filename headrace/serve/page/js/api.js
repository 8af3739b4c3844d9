// The server's answers and refusals, with the keys it asks for.

import { askForKey, keyFor } from "./keys.js";

/** The server said no. `status` 0: it could not be reached. */
export class Refusal extends Error {
  constructor(status, message, wait = null) {
    super(message);
    this.status = status;
    this.wait = wait; // seconds after which to try again
  }
}

/**
 * The response to a request that went well; raises Refusal otherwise.
 * A missing or wrong key is asked for, and the request made again with it. `quietly`: not asked for.
 */
export async function call(path, { method = "GET", body, signal, role = "api", accept, quietly = false } = {}) {
  for (;;) {
    const key = keyFor(role);
    const response = await fetch(path, {
      method,
      signal,
      cache: "no-store",
      credentials: "omit",
      headers: {
        ...(key && { Authorization: `Bearer ${key}` }),
        ...(body && { "Content-Type": "application/json" }),
        ...(accept && { Accept: accept }),
      },
      body: body && JSON.stringify(body),
    }).catch((fault) => {
      throw fault.name === "AbortError" ? fault : new Refusal(0, "The server cannot be reached.");
    });
    if (response.ok) return response;
    const refusal = await readRefusal(response);
    if (response.status !== 401 || quietly || !(await askForKey(role, key))) throw refusal;
  }
}

async function readRefusal(response) {
  let message = `The server answered ${response.status}.`;
  try {
    const { error } = await response.json();
    message = error?.message ?? message;
  } catch {
    // not an error object of ours: a proxy's page perhaps
  }
  return new Refusal(response.status, message, Number(response.headers.get("Retry-After")) || null);
}

/** What the lines `data: ...` of a stream of events say, until `[DONE]` or the end. An error frame raises Refusal. */
export async function* events(response) {
  for await (const data of frames(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refusal(Number(event.error.code) || 500, event.error.message);
    yield event;
  }
}

async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // a stream broken by `stop` has nothing left to cancel
  }
}

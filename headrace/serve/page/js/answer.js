// One answer, from the request to its last token.

import { call, events, Refusal } from "./api.js";
import { asBody } from "./settings.js";

/** An answer that has not begun. */
export const blank = (model) => ({ role: "assistant", model, content: "", thinking: "", calls: [] });

/**
 * Fills `answer` from the server's stream and calls `changed()` after every piece. Never raises: what went wrong is
 * told in `answer.trouble`, and that the reader stopped it in `answer.stopped`.
 */
export async function stream(answer, { model, settings, messages }, signal, changed) {
  const begun = performance.now();
  const since = () => (performance.now() - begun) / 1000;
  try {
    const body = {
      model,
      messages: asMessages(settings, messages),
      stream: true,
      stream_options: { include_usage: true },
      ...asBody(settings),
    };
    const response = await call("/v1/chat/completions", { method: "POST", body, signal, accept: "text/event-stream" });
    for await (const chunk of events(response)) {
      if (chunk.usage) answer.usage = chunk.usage;
      if (take(answer, chunk.choices?.[0], since)) changed();
    }
    if (!answer.finish) throw new Refusal(0, "The connection ended before the answer did.");
    if (answer.finish === "error") throw new Refusal(500, "The server could not finish this answer.");
  } catch (fault) {
    if (fault.name === "AbortError") answer.stopped = true;
    else answer.trouble = explain(fault);
  }
  answer.seconds = since();
}

/** Adds a choice's delta; whether there was anything to see in it. */
function take(answer, choice, since) {
  if (!choice) return false;
  const { content, reasoning_content, reasoning, tool_calls, refusal } = choice.delta ?? {};
  const thought = reasoning_content ?? reasoning;
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  if (!(content || thought || tool_calls || refusal)) return Boolean(choice.finish_reason);
  answer.first ??= since();
  if (thought) {
    answer.thinking += thought;
    answer.thought = since() - answer.first;
  }
  answer.content += content ?? refusal ?? "";
  for (const piece of tool_calls ?? []) {
    const known = (answer.calls[piece.index ?? 0] ??= { id: "", name: "", arguments: "" });
    if (piece.id) known.id = piece.id;
    known.name += piece.function?.name ?? "";
    known.arguments += piece.function?.arguments ?? "";
  }
  return true;
}

function explain(fault) {
  if (!(fault instanceof Refusal)) return `The answer could not be read: ${fault.message}`;
  const said = fault.message.charAt(0).toUpperCase() + fault.message.slice(1).replace(/[^.!?]$/, "$&.");
  return fault.wait ? `${said} The server expects room in ${fault.wait} s.` : said;
}

/** The conversation as the API wants it. Thinking is not sent back. */
function asMessages(settings, messages) {
  const system = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  return [...system, ...messages.map(asMessage)];
}

function asMessage({ role, content, calls, call: id }) {
  if (role === "tool") return { role, content, tool_call_id: id };
  if (!calls?.length) return { role, content };
  const tool_calls = calls.map((one) => ({
    id: one.id,
    type: "function",
    function: { name: one.name, arguments: one.arguments },
  }));
  return { role, content: content || null, tool_calls };
}

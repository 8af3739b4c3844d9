// Conversations in this browser: one entry of localStorage each, so that two tabs do not overwrite each other's.

const PREFIX = "headrace.chat.";
const CURRENT = "headrace.current";

/*
 * conversation  { id, title, created, changed, settings, messages }
 * message       { role: "user" | "assistant" | "tool", content, and for answers: model, thinking, thought (seconds),
 *                 calls: [{ id, name, arguments }], finish, stopped, trouble, usage, first, seconds; for tools: call, name }
 */
export const fresh = (settings = {}) => ({
  id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`,
  title: "",
  created: Date.now(),
  changed: Date.now(),
  settings: { ...settings },
  messages: [],
});

/** All that are kept, the last used first. What cannot be read is left alone and not listed. */
export function all() {
  const found = [];
  for (const key of keys()) {
    try {
      const one = JSON.parse(localStorage.getItem(key));
      if (Array.isArray(one?.messages) && one.id) found.push(one);
    } catch {
      // written by another version, or by hand
    }
  }
  return found.sort((a, b) => b.changed - a.changed);
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return [];
  }
}

/** Whether it was kept; false when the browser's room is used up or storage is off. */
export function keep(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    localStorage.setItem(CURRENT, conversation.id);
    return true;
  } catch {
    return false;
  }
}

export function forget(id) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // there is nothing to forget
  }
}

export function last() {
  try {
    return localStorage.getItem(CURRENT);
  } catch {
    return null;
  }
}

/** The title of a conversation: how its first message begins. */
export function entitle(conversation) {
  const first = conversation.messages.find((message) => message.role === "user")?.content ?? "";
  const line = first.trim().split("\n")[0];
  conversation.title = line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

/** A conversation as a Markdown page. */
export function asMarkdown({ title, created, settings, messages }) {
  const parts = [`# ${title || "Conversation"}`, `*${new Date(created).toLocaleString()}*`];
  if (settings.system) parts.push("## System", settings.system);
  for (const message of messages) {
    const who = { user: "You", assistant: message.model ?? "Answer", tool: `Result of ${message.name}` };
    parts.push(`## ${who[message.role]}`);
    if (message.thinking) parts.push(message.thinking.replace(/^/gm, "> "));
    if (message.content) parts.push(message.content);
    for (const call of message.calls ?? []) parts.push(`Calls \`${call.name}\`:`, "```json\n" + call.arguments + "\n```");
  }
  return `${parts.join("\n\n")}\n`;
}

// The settings of a conversation: system prompt, sampling, thinking, tools. What is left empty is not sent.

import { byId, el } from "./dom.js";

// name, label, smallest, largest, step
const SAMPLING = [
  ["temperature", "Temperature", 0, 2, 0.05],
  ["top_p", "Top p", 0.01, 1, 0.01],
  ["top_k", "Top k", 0, null, 1],
  ["min_p", "Min p", 0, 1, 0.01],
  ["max_tokens", "Max tokens", 1, null, 1],
  ["seed", "Seed", null, null, 1],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1],
  ["repetition_penalty", "Repetition penalty", 0.01, 2, 0.01],
];

const form = byId("settings-form");
const fault = byId("tools-fault");

for (const [name, label, min, max, step] of SAMPLING) {
  const field = el("input", { name, type: "number", inputmode: "decimal", min, max, step, placeholder: "Default" });
  byId("sampling").append(el("label", {}, label, field));
}

/** Shows `settings` in the form and calls `changed(settings)` with each change. */
export function bind(changed) {
  form.addEventListener("input", () => changed(read()));
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", () => {
    fill({});
    changed({});
  });
}

export function fill(settings) {
  for (const field of form.elements) if (field.name) field.value = settings[field.name] ?? "";
  fault.textContent = toolsFault(settings.tools);
}

function read() {
  const settings = {};
  for (const field of form.elements) if (field.name && field.value !== "") settings[field.name] = field.value;
  fault.textContent = toolsFault(settings.tools);
  form.elements.tools.setAttribute("aria-invalid", String(fault.textContent !== ""));
  return settings;
}

function toolsFault(text) {
  if (!text) return "";
  try {
    return Array.isArray(JSON.parse(text)) ? "" : "Not a list; tools are left out.";
  } catch (problem) {
    return `Not JSON, so tools are left out: ${problem.message}`;
  }
}

/** The fields of a request's body that the settings stand for. */
export function asBody(settings) {
  const body = {};
  for (const [name] of SAMPLING) if (settings[name] != null) body[name] = Number(settings[name]);
  if (settings.stop) body.stop = settings.stop.split("\n").filter((line) => line !== "");
  if (settings.thinking) body.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  if (settings.tools && !toolsFault(settings.tools)) body.tools = JSON.parse(settings.tools);
  return body;
}

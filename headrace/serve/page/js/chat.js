// The chat: which conversation is shown, what is sent, and what becomes of the answer.

import { blank, stream } from "./answer.js";
import { call } from "./api.js";
import { byId, el, icon, toast } from "./dom.js";
import { MessageView } from "./message.js";
import * as settings from "./settings.js";
import { Speech, say } from "./speak.js";
import * as store from "./store.js";

const IDEAS = [
  "Explain in two sentences what a headrace is.",
  "Write a Python function that merges two sorted lists.",
  "Compare tea and coffee in a small table.",
];

const scroll = byId("scroll");
const list = byId("messages");
const prompt = byId("prompt");
const touch = matchMedia("(pointer: coarse)"); // Enter begins a line there, as in every other field

let conversation = store.fresh();
let views = new Map(); // message -> MessageView
let running = null; // AbortController of the answer being written

// -- the conversation that is shown

/** Begins the chat: the last conversation, the controls, the model's name. */
export function start() {
  settings.bind((changed) => {
    conversation.settings = changed;
    if (conversation.messages.length) keep();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", stop);
  byId("new").addEventListener("click", () => show(store.fresh(conversation.settings), { focus: true }));
  byId("jump").addEventListener("click", () => toEnd());
  scroll.addEventListener("scroll", () => (byId("jump").hidden = atEnd() || !conversation.messages.length));
  window.addEventListener("storage", () => running || listAll());
  window.addEventListener("pagehide", () => running && keep());
  for (const idea of IDEAS) byId("ideas").append(el("button", { class: "wide", onclick: () => send(idea) }, idea));
  const kept = store.all();
  show(kept.find((one) => one.id === store.last()) ?? kept[0] ?? conversation);
}

/** Stops the answer being written; whether there was one. */
export function stop() {
  running?.abort();
  return running !== null;
}

export const current = () => conversation;

function show(chosen, { focus = false } = {}) {
  stop();
  conversation = chosen;
  settings.fill(conversation.settings);
  redraw();
  listAll();
  toEnd();
  if (focus) prompt.focus();
}

function redraw() {
  const old = views;
  views = new Map(conversation.messages.map((one) => [one, old.get(one) ?? new MessageView(one, doing)]));
  list.replaceChildren(...[...views.values()].map((view) => view.element));
  byId("welcome").hidden = conversation.messages.length > 0;
  const end = conversation.messages.at(-1);
  if (waitsForResults(end)) views.get(end).askResults();
}

const waitsForResults = (message) => message?.role === "assistant" && message.calls?.length > 0 && !message.trouble;

function keep() {
  conversation.changed = Date.now();
  if (!conversation.title) store.entitle(conversation);
  if (!store.keep(conversation)) toast("The browser has no room left: this conversation is not kept");
  listAll();
}

function listAll() {
  const items = store.all().map((one) =>
    el(
      "li",
      {},
      el(
        "button",
        { class: "open", "aria-current": one.id === conversation.id && "true", onclick: () => show(one, { focus: true }) },
        el("span", {}, one.title || "Untitled"),
      ),
      el("button", { class: "icon", "aria-label": `Delete: ${one.title}`, title: "Delete", onclick: () => forget(one) }, icon("bin")),
    ),
  );
  byId("conversations").replaceChildren(...items);
}

function forget(one) {
  if (!confirm(`Delete “${one.title || "Untitled"}”?`)) return;
  store.forget(one.id);
  if (one.id === conversation.id) show(store.fresh(conversation.settings));
  else listAll();
  byId("new").focus();
}

// -- asking

function send(text = prompt.value) {
  if (running || !text.trim()) return;
  prompt.value = "";
  ask([{ role: "user", content: text }]);
}

const doing = {
  /** A question is asked anew, and what followed it goes; an answer is only put right. */
  edit(message, text) {
    if (running) return;
    if (message.role === "assistant") {
      message.content = text;
      views.get(message).show();
      return keep();
    }
    cut(message);
    ask([{ role: "user", content: text }]);
  },
  again(message) {
    if (running) return;
    cut(message);
    ask([]);
  },
  results(message, texts) {
    if (running) return;
    views.get(message).show();
    ask(message.calls.map((one, i) => ({ role: "tool", call: one.id, name: one.name, content: texts[i] })));
  },
};

/** Takes `message` away, and all after it. */
function cut(message) {
  conversation.messages.splice(conversation.messages.indexOf(message));
}

async function ask(added) {
  const asked = conversation;
  const model = byId("model").value;
  asked.messages.push(...added);
  const request = { model, settings: { ...asked.settings }, messages: [...asked.messages] };
  const answer = blank(model);
  asked.messages.push(answer);
  redraw();
  keep();
  toEnd();
  const view = views.get(answer);
  const speech = new Speech();
  const draw = paced(() => {
    const follow = atEnd();
    view.show(true);
    speech.hear(answer.content);
    if (follow) toEnd();
  });
  const control = (running = new AbortController());
  busy(true);
  if (document.activeElement === document.body) byId("stop").focus(); // what was pressed is gone
  view.show(true);
  await stream(answer, request, control.signal, draw);
  draw.cancel();
  const follow = atEnd();
  view.show();
  speech.hear(answer.content, true);
  if (answer.stopped) say("Stopped.");
  if (running === control) {
    running = null;
    busy(false);
  }
  if (asked === conversation) {
    if (waitsForResults(answer)) view.askResults();
    if (follow) toEnd();
    keep();
  } else store.keep(asked);
}

function busy(is) {
  const had = document.activeElement;
  byId("stop").hidden = !is;
  byId("send").hidden = is;
  if (had === byId("send") || had === byId("stop")) byId(is ? "stop" : "send").focus();
}

/** `draw`, at most once per frame, and seldomer where drawing is slow: at most a third of the time is spent on it. */
function paced(draw) {
  let timer = 0;
  let next = 0;
  const later = () => {
    timer ||= setTimeout(() => {
      timer = 0;
      const begun = performance.now();
      draw();
      next = performance.now() + Math.max(16, 2 * (performance.now() - begun));
    }, Math.max(0, next - performance.now()));
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
const toEnd = () => (scroll.scrollTop = scroll.scrollHeight);

// -- the model

/** Asks the server what it serves; raises Refusal when it cannot say. */
export async function readModels(options) {
  const { data } = await (await call("/v1/models", options)).json();
  const select = byId("model");
  const before = select.value;
  select.replaceChildren(...data.map(({ id }) => el("option", { value: id }, id)));
  if (data.some(({ id }) => id === before)) select.value = before;
}

// How one message looks: text, thinking, tool calls, trouble, and what can be done with it.

import { copyButton, el, icon, tool } from "./dom.js";
import { Prose } from "./markdown.js";

/** A message on the page. `doing` has what its buttons call: edit(message, text), again(message), results(message, texts). */
export class MessageView {
  constructor(message, doing) {
    this.message = message;
    this.doing = doing;
    this.body = el("div", { class: "body" });
    this.foot = el("div", { class: "actions" });
    const name = { user: "You wrote", assistant: "Answer", tool: `Result of ${message.name}` }[message.role];
    this.element = el("li", { class: `message ${message.role}`, "aria-label": name }, this.body, this.foot);
    if (message.role === "user") this.body.append((this.bubble = el("div", { class: "bubble" })));
    else if (message.role === "assistant") this.#assistant();
    this.show();
  }

  #assistant() {
    this.thinking = new Prose();
    this.prose = new Prose();
    this.summary = el("summary");
    this.fold = el("details", { class: "thinking", hidden: true }, this.summary, this.thinking.element);
    this.fold.addEventListener("toggle", () => this.fold.open && this.thinking.show(this.message.thinking));
    this.dots = el("span", { class: "waiting", role: "img", "aria-label": "Waiting" }, el("i"), el("i"), el("i"));
    this.calls = el("div");
    this.trouble = el("div", { class: "trouble", role: "alert", hidden: true });
    this.body.append(this.fold, this.prose.element, this.dots, this.calls, this.trouble);
  }

  /** Draws the message as it is now; `running`: more of it is to come. */
  show(running = false) {
    const { message } = this;
    if (message.role === "user") this.bubble.textContent = message.content;
    if (message.role === "tool") this.body.replaceChildren(card(`Result of ${message.name}`, message.content));
    if (message.role === "assistant") this.#showAnswer(running);
    if (running) this.foot.replaceChildren();
    else this.#showActions();
  }

  #showAnswer(running) {
    const { message } = this;
    this.element.setAttribute("aria-busy", String(running));
    this.prose.show(message.content);
    this.fold.hidden = !message.thinking;
    if (this.fold.open) this.thinking.show(message.thinking);
    const still = running && !message.content && !message.calls.length;
    const long = message.thought >= 0.1 ? `${message.thought.toFixed(1)} s` : "a moment";
    this.summary.textContent = still ? "Thinking…" : `Thought for ${long}`;
    this.dots.hidden = !(running && !message.content && !message.thinking && !message.calls.length);
    this.calls.replaceChildren(...message.calls.map((call) => card(call.name, tidy(call.arguments))));
    this.trouble.hidden = !message.trouble;
    this.trouble.replaceChildren();
    if (message.trouble) {
      const again = () => this.doing.again(message);
      this.trouble.append(message.trouble, el("button", { type: "button", class: "small", onclick: again }, "Try again"));
    }
  }

  #showActions() {
    const { message, doing } = this;
    if (message.role === "tool") return;
    const buttons = message.content ? [copyButton(() => message.content)] : [];
    buttons.push(tool("edit", "Edit", () => this.#edit()));
    if (message.role === "assistant") buttons.push(tool("again", "Answer again", () => doing.again(message)));
    const meta = message.role === "assistant" ? told(message) : "";
    this.foot.replaceChildren(...buttons, el("span", { class: "meta" }, meta));
  }

  /** Asks for what the called tools answered; only for the last message, which waits for it. */
  askResults() {
    const form = el("form", { class: "results" });
    const fields = this.message.calls.map((call) => el("textarea", { rows: "2", class: "code", "data-call": call.id }));
    this.message.calls.forEach((call, i) => form.append(el("label", {}, `What ${call.name} answers`, fields[i])));
    form.append(el("div", { class: "row" }, el("button", { class: "main" }, "Send results")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.doing.results(this.message, fields.map((field) => field.value));
    });
    this.calls.append(form);
  }

  #edit() {
    const { message } = this;
    const own = message.role === "user";
    const field = el("textarea", { "aria-label": "Text of the message" });
    field.value = message.content;
    const close = () => {
      form.remove();
      this.body.hidden = this.foot.hidden = false;
      this.element.classList.remove("editing");
      this.foot.querySelector("[aria-label=Edit]")?.focus();
    };
    const form = el(
      "form",
      { class: "edit" },
      field,
      el(
        "div",
        { class: "row" },
        el("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
        el("button", { class: "main" }, own ? "Send" : "Save"),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      close();
      this.doing.edit(message, field.value);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      close();
    });
    this.body.hidden = this.foot.hidden = true;
    this.element.classList.add("editing");
    this.element.append(form);
    field.focus();
  }
}

const card = (title, text) =>
  el(
    "section",
    { class: "call", "aria-label": title },
    el("header", {}, icon("tool"), el("span", {}, title)),
    el("pre", {}, text),
  );

function tidy(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // not whole yet
  }
}

/** What an answer cost and how it ended, in a line. */
function told({ usage, first, seconds, finish, stopped }) {
  const parts = [];
  const tokens = usage?.completion_tokens;
  if (tokens) parts.push(`${tokens} tokens`);
  if (tokens > 1 && seconds > first) parts.push(`${((tokens - 1) / (seconds - first)).toFixed(1)} tok/s`);
  if (first != null) parts.push(`first after ${first < 1 ? `${Math.round(first * 1000)} ms` : `${first.toFixed(1)} s`}`);
  if (usage?.prompt_tokens_details?.cached_tokens) parts.push(`${usage.prompt_tokens_details.cached_tokens} from cache`);
  if (stopped || seconds == null) parts.push("stopped"); // without seconds: the page was left while it ran
  if (finish === "length") parts.push("cut at max tokens");
  if (finish === "abort") parts.push("cancelled by the server");
  return parts.join(" · ");
}

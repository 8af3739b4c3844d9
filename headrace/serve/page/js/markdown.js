// What a model wrote, as elements. None of it is trusted: markup in it is shown as text, and what the Markdown reader
// makes passes the sanitizer on its way into the document. Nothing in it can run, load or look like the page itself.

import DOMPurify from "../vendor/dompurify-3.4.18/purify.es.mjs";
import { Marked } from "../vendor/marked-18.2.1/marked.esm.js";
import { copyButton, el } from "./dom.js";

const RULES = {
  ALLOWED_TAGS: "a b blockquote br code del em h3 h4 h5 h6 hr i kbd li mark ol p pre s span strong sub sup table tbody td th thead tr u ul".split(" "),
  ALLOWED_ATTR: ["align", "class", "href", "rel", "start", "target", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["align", "rel", "start", "target"], // their values are no addresses
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const ADDRESS = /^(?:https?:\/\/|mailto:)/i;
const HARMLESS = /^<\/?(?:b|br|del|em|i|kbd|mark|s|strong|sub|sup|u)\s*\/?>$/i;
const LONGEST = 200_000; // characters that are still read as Markdown
const LONGEST_CODE = 20_000; // characters that are still coloured

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (sign) => ESCAPES[sign]);

const link = (href, inner, title) =>
  ADDRESS.test(href)
    ? `<a href="${escape(href)}" title="${escape(title || href)}" target="_blank" rel="noopener noreferrer nofollow">${inner}</a>`
    : inner;

const marked = new Marked({
  gfm: true,
  renderer: {
    html({ text, block }) {
      if (HARMLESS.test(text.trim())) return text;
      return block ? `<p>${escape(text.trim()).replaceAll("\n", "<br>")}</p>` : escape(text);
    },
    link({ href, title, tokens }) {
      return link(href, this.parser.parseInline(tokens), title);
    },
    // never loaded: an address can carry away what was said
    image: ({ href, text }) => link(href, `[image: ${escape(text || href)}]`),
    heading({ tokens, depth }) {
      const tag = `h${Math.min(depth + 2, 6)}`; // h1 and h2 are the page's
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const clean = (markup) => DOMPurify.sanitize(markup, RULES);

/**
 * Text that grows, as elements. Blocks that did not change since the last time are left as they are, so that a long
 * answer costs no more than its last paragraph per token, and selected text stays selected.
 */
export class Prose {
  constructor() {
    this.element = el("div", { class: "prose" });
    this.blocks = []; // { raw, type, code, place }
    this.definitions = 0;
  }

  show(text) {
    const tokens = text.length > LONGEST ? [{ type: "plain", raw: text }] : marked.lexer(text);
    const definitions = tokens.filter(({ type }) => type === "def").length;
    if (definitions !== this.definitions) for (const block of this.blocks) block.raw = null; // links mean more now
    this.definitions = definitions;
    let index = 0;
    for (const token of tokens) {
      if (token.type === "space" || token.type === "def") continue;
      this.#put(index++, token);
    }
    for (const { place } of this.blocks.splice(index)) place.remove();
  }

  #put(index, token) {
    const old = this.blocks[index];
    if (old?.raw === token.raw && old.type === token.type) return;
    if (old?.code && token.type === "code" && old.code.language === language(token)) {
      old.raw = token.raw;
      old.code.show(token.text);
      return;
    }
    const code = token.type === "code" ? new Code(language(token), token.text) : null;
    const place = el("div", {}, ...(code ? [code.element] : render(token)));
    if (old) old.place.replaceWith(place);
    else this.element.append(place);
    this.blocks[index] = { raw: token.raw, type: token.type, code, place };
  }
}

function render(token) {
  if (token.type === "plain") return [el("p", {}, token.raw)];
  const made = clean(marked.parser([token]));
  for (const table of made.querySelectorAll("table")) {
    const frame = el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const pre of made.querySelectorAll("pre")) {
    // code inside a list or a quotation
    const code = pre.querySelector("code");
    const name = /language-([\w+#.-]+)/.exec(code?.className ?? "")?.[1] ?? "";
    pre.replaceWith(new Code(name, pre.textContent).element);
  }
  return [...made.childNodes];
}

const language = (token) => /^[\w+#.-]*/.exec(token.lang ?? "")[0].toLowerCase();

let highlighter = null; // loaded with the first piece of code

/** A piece of code with its language, a button that copies it, and colours. */
class Code {
  constructor(language, text) {
    this.language = language;
    this.code = el("code");
    this.element = el(
      "div",
      { class: "block" },
      el("header", {}, el("span", {}, language || "text"), copyButton(() => this.text, "Copy code")),
      el("pre", { tabindex: "0", role: "region", "aria-label": `Code, ${language || "text"}` }, this.code),
    );
    this.show(text);
  }

  show(text) {
    this.text = text;
    if (!this.#colour()) this.code.textContent = text;
  }

  /** Whether it was coloured; when the colours have to be loaded first, that follows. */
  #colour() {
    if (!this.language || this.text.length > LONGEST_CODE) return false;
    if (!highlighter) {
      import("../vendor/highlight-11.12.0/highlight.min.js").then((module) => {
        highlighter = module.default;
        this.#colour();
      });
      return false;
    }
    if (!highlighter.getLanguage(this.language)) return false;
    const { value } = highlighter.highlight(this.text, { language: this.language, ignoreIllegals: true });
    this.code.replaceChildren(clean(value));
    return true;
  }
}

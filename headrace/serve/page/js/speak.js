// Reads an answer out, sentence by sentence as it is written, through a polite live region.

import { byId, el } from "./dom.js";

const place = byId("spoken");
const SENTENCE = /[\s\S]*?(?:[.!?…:](?=\s)|\n\n)/y;

/** One answer being spoken. */
export class Speech {
  constructor() {
    this.said = 0;
    place.replaceChildren();
  }

  /** Says what has become whole sentences of `text`; all of the rest when it is `finished`. */
  hear(text, finished = false) {
    SENTENCE.lastIndex = this.said;
    let end = this.said;
    while (SENTENCE.test(text)) end = SENTENCE.lastIndex;
    if (finished) end = text.length;
    say(text.slice(this.said, end));
    this.said = end;
  }
}

export function say(text) {
  const plain = text.replace(/[*_`#>|]+/g, " ").trim();
  if (!plain) return;
  const line = el("p", {}, `${plain} `);
  place.append(line);
  setTimeout(() => line.remove(), 20_000); // it was said; who reads the page later shall not meet it twice
}

// The table of running requests, one row each, with a button that cancels it.

import { call } from "./api.js";
import { el, toast } from "./dom.js";
import { count, rate, seconds } from "./numbers.js";
import { say } from "./speak.js";

const COLUMNS = {
  Request: (row) => row.name ?? row.id,
  State: (row) => ({ waiting: "Waiting", prefill: "Prefill", decode: "Decode" })[row.state] ?? row.state,
  Age: (row) => seconds(row.age),
  TTFT: (row) => seconds(row.ttft),
  Prompt: (row) => count(row.prompt_tokens) + (row.cached_tokens ? ` (${count(row.cached_tokens)} cached)` : ""),
  Generated: (row) => `${count(row.generated)}${row.max_tokens == null ? "" : ` of ${count(row.max_tokens)}`}`,
  "Tokens/s": (row) => rate(row.tokens_per_second),
};

/** Rows are kept and only their texts changed, so that a focused button stays where it is. */
export class Rows {
  constructor() {
    this.rows = new Map(); // id -> { element, cells }
    this.body = el("tbody", { role: "rowgroup" });
    this.empty = el("p", { class: "note" }, "No request is running or waiting.");
    this.more = el("p", { class: "note", hidden: true });
    const heads = [...Object.keys(COLUMNS), "Cancel"].map((name, i, { length }) =>
      el("th", { scope: "col", role: "columnheader" }, i === length - 1 ? el("span", { class: "hidden" }, name) : name),
    );
    this.table = el(
      "table",
      { role: "table" },
      el("caption", { class: "hidden" }, "Requests that run or wait"),
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads)),
      this.body,
    );
    const frame = el("div", { class: "frame", tabindex: "0", role: "region", "aria-label": "Requests" }, this.table);
    this.element = el("div", {}, frame, this.empty, this.more);
  }

  show(rows, more) {
    const here = new Set(rows.map(({ id }) => id));
    for (const [id, { element }] of this.rows) {
      if (here.has(id)) continue;
      element.remove();
      this.rows.delete(id);
    }
    for (const row of rows) {
      if (!this.rows.has(row.id)) this.rows.set(row.id, this.#row(row));
      const { element, cells } = this.rows.get(row.id);
      element.dataset.state = row.state;
      Object.values(COLUMNS).forEach((text, i) => {
        if (cells[i].textContent !== text(row)) cells[i].textContent = text(row);
      });
    }
    this.table.hidden = rows.length === 0;
    this.empty.hidden = rows.length > 0;
    this.more.hidden = !more;
    this.more.textContent = `and ${more} more`;
  }

  #row(row) {
    const cells = Object.keys(COLUMNS).map((name, i) =>
      el("td", { role: "cell", "data-label": name, title: i === 0 && row.id }),
    );
    const cancel = el("td", { role: "cell" }, cancelButton(row));
    const element = el("tr", { role: "row" }, ...cells, cancel);
    this.body.append(element);
    return { element, cells };
  }
}

/** Asks once more, because rows move up when others end. */
function cancelButton({ id, name }) {
  let sure = false;
  let timer = 0;
  const button = el("button", { type: "button", class: "small", "aria-label": `Cancel ${name ?? id}` }, "Cancel");
  const calm = () => {
    sure = false;
    button.textContent = "Cancel";
    button.classList.remove("sure");
  };
  button.addEventListener("click", async () => {
    clearTimeout(timer);
    if (!sure) {
      sure = true;
      button.textContent = "Sure?";
      button.classList.add("sure");
      say(`Press again to cancel ${name ?? id}.`);
      timer = setTimeout(calm, 4000);
      return;
    }
    button.disabled = true;
    try {
      await call(`/debug/requests/${encodeURIComponent(id)}/cancel`, { method: "POST", role: "admin" });
      toast("Cancelled");
    } catch (fault) {
      toast(fault.message);
      button.disabled = false;
      calm();
    }
  });
  return button;
}

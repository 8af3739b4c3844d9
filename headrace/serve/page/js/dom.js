// Making elements, without ever turning text into markup.

export const byId = (id) => document.getElementById(id);

/**
 * An element: `el("button", { class: "small", onclick: save }, "Save")`.
 * Functions become listeners, true an empty attribute; false and null are left out.
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the pictures that index.html defines. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with a picture and a name that is read and shown as its title. */
export const tool = (picture, label, onclick) =>
  el("button", { type: "button", class: "small", "aria-label": label, title: label, onclick }, icon(picture));

let hiding = 0;

/** A short word at the foot of the page, read aloud too. */
export function toast(text) {
  const place = byId("toast");
  place.textContent = text;
  clearTimeout(hiding);
  hiding = setTimeout(() => (place.textContent = ""), 3500);
}

/** A button that copies what `text()` gives. */
export function copyButton(text, label = "Copy") {
  const button = tool("copy", label, async () => {
    if (!(await copy(text()))) return;
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Puts text on the clipboard, also where the page came over plain HTTP and the new way is not offered. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "hidden", "aria-hidden": "true" });
    const before = document.activeElement;
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    if (!done) {
      toast("The browser did not allow copying");
      return false;
    }
  }
  toast("Copied");
  return true;
}

/** Hands the reader a file. */
export function save(name, kind, text) {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// The two keys: kept for this tab only, asked for when the server wants one.

import { byId } from "./dom.js";

const NAMES = { api: "headrace.key", admin: "headrace.admin" };
const held = {}; // where the tab has no storage

const dialog = byId("keys");
const form = dialog.querySelector("form");
let asking = null; // the question that is open, for all who wait for its answer

/** The key to send; the admin key opens the API too, but not the other way round. */
export const keyFor = (role) => read(role) || (role === "api" ? read("admin") : "");

/** Whether there is now another key than `tried`. Several who ask at once share one dialog. */
export async function askForKey(role, tried) {
  if (keyFor(role) !== tried) return true; // somebody else has just been given one
  const why = { api: "This server wants an API key.", admin: "The live view wants the admin key." }[role];
  await (asking ??= open(role, tried ? `${why} It does not know the one given.` : why).finally(() => (asking = null)));
  return keyFor(role) !== tried;
}

/** Shows the dialog; settles when it is closed. */
export function open(role = "api", why = "") {
  byId("keys-why").textContent = why;
  for (const name of Object.keys(NAMES)) form.elements[name].value = read(name);
  dialog.showModal();
  form.elements[role].focus();
  form.elements[role].select();
  return new Promise((done) => dialog.addEventListener("close", done, { once: true }));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  for (const role of Object.keys(NAMES)) write(role, form.elements[role].value.trim());
  dialog.close();
});
form.querySelector("[value=no]").addEventListener("click", () => dialog.close());
byId("open-keys").addEventListener("click", () => open());

function read(role) {
  try {
    return sessionStorage.getItem(NAMES[role]) ?? "";
  } catch {
    return held[role] ?? "";
  }
}

function write(role, key) {
  held[role] = key;
  try {
    if (key) sessionStorage.setItem(NAMES[role], key);
    else sessionStorage.removeItem(NAMES[role]);
  } catch {
    // kept until the page is left, then
  }
}

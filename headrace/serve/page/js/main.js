// Puts the parts together: views, drawers, dialogs, colours, and whether the server is there.

import { call, Refusal } from "./api.js";
import * as chat from "./chat.js";
import { byId, copy, save } from "./dom.js";
import { asMarkdown } from "./store.js";

// -- views: #chat and #live

const VIEWS = ["chat", "live"];
let live = null; // the module, loaded when it is first looked at

async function route() {
  const name = VIEWS.find((view) => `#${view}` === location.hash) ?? "chat";
  for (const view of VIEWS) {
    byId(`${view}-view`).hidden = view !== name;
    if (view === name) byId(`to-${view}`).setAttribute("aria-current", "page");
    else byId(`to-${view}`).removeAttribute("aria-current");
  }
  document.title = name === "live" ? "Live · Headrace" : "Headrace";
  byId("open-list").classList.toggle("away", name !== "chat");
  if (name === "live") {
    live ??= await import("./live.js");
    live.show();
  } else live?.hide();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  [...document.querySelectorAll("main")].find((main) => main.offsetParent).focus();
});

// -- drawers: beside the chat or over it

const narrow = matchMedia("(max-width: 52rem)");
const tight = matchMedia("(max-width: 72rem)");
const scrim = byId("scrim");
const list = byId("list");
const settings = byId("settings");

function showList(is) {
  list.classList.toggle("shown", is);
  byId("open-list").setAttribute("aria-expanded", String(is));
  cover();
  if (is) byId("new").focus();
  else if (list.contains(document.activeElement)) byId("open-list").focus();
}

function showSettings(is) {
  const inside = settings.contains(document.activeElement);
  settings.hidden = !is;
  byId("open-settings").setAttribute("aria-expanded", String(is));
  cover();
  if (is) byId("close-settings").focus();
  else if (inside) byId("open-settings").focus();
}

/** While a drawer lies over the chat, the chat is out of reach. */
function cover() {
  const over = (narrow.matches && list.classList.contains("shown")) || (tight.matches && !settings.hidden);
  scrim.hidden = !over;
  byId("main").inert = over;
}

byId("open-list").addEventListener("click", () => showList(!list.classList.contains("shown")));
byId("open-settings").addEventListener("click", () => showSettings(settings.hidden));
byId("close-settings").addEventListener("click", () => showSettings(false));
scrim.addEventListener("click", () => {
  showList(false);
  showSettings(false);
});
list.addEventListener("click", (event) => {
  if (narrow.matches && event.target.closest(".open, #new")) showList(false);
});
for (const query of [narrow, tight]) query.addEventListener("change", cover);

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (!scrim.hidden) {
    showList(false);
    showSettings(false);
  } else chat.stop();
});

// -- colours

const THEMES = { "": "as the system", light: "light", dark: "dark" };

function nameTheme() {
  const name = `Colours: ${THEMES[document.documentElement.dataset.theme] ?? THEMES[""]}`;
  byId("theme").setAttribute("aria-label", name);
  byId("theme").title = name;
}

byId("theme").addEventListener("click", () => {
  const order = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme ?? "";
  const next = order[(order.indexOf(now) + 1) % order.length];
  document.documentElement.dataset.theme = next;
  nameTheme();
  try {
    localStorage.setItem("headrace.theme", next);
  } catch {
    // kept for as long as the page is open
  }
});

// -- export

const dialog = byId("export");
const file = () => (chat.current().title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).toLowerCase();
byId("open-export").addEventListener("click", () => dialog.showModal());
byId("export-close").addEventListener("click", () => dialog.close());
byId("export-copy").addEventListener("click", async () => (await copy(asMarkdown(chat.current()))) && dialog.close());
byId("export-markdown").addEventListener("click", () => save(`${file()}.md`, "text/markdown", asMarkdown(chat.current())));
byId("export-json").addEventListener("click", () => {
  save(`${file()}.json`, "application/json", JSON.stringify(chat.current(), null, 2));
});

// -- is the server there?

const state = byId("state");

function tell(is, text) {
  if (state.title === text) return;
  state.dataset.is = is;
  state.replaceChildren(Object.assign(document.createElement("span"), { textContent: text }));
  state.title = text;
}

async function look() {
  try {
    await call("/health/ready", { quietly: true });
    if (!byId("model").options.length) await chat.readModels({ quietly: true });
    tell("ready", "Ready");
  } catch (fault) {
    const words = { 0: "Not reachable", 401: "Wants a key" };
    tell("away", words[fault instanceof Refusal ? fault.status : 0] ?? "Not ready");
  }
}

nameTheme();
chat.start();
route();
window.addEventListener("hashchange", route);
await chat.readModels().catch(() => {}); // asks for the key where there is one; the light says the rest
await look();
setInterval(() => document.hidden || look(), 10_000);
byId("keys").addEventListener("close", look);

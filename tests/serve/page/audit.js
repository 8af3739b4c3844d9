// What the tests ask about a page as it is shown; each function lists what is wrong.

const shown = (css) => [...document.querySelectorAll(css)].filter((element) => element.checkVisibility());
const told = (element) => element.outerHTML.slice(0, 120);

/** Elements that a screen reader would have no name for. */
function nameless() {
  const css = "button, a[href], input, select, textarea, [role=img], [role=region], dialog, main, aside, nav";
  const field = (element) => element.matches("input, select, textarea");
  const named = (element) =>
    element.ariaLabel ||
    element.labels?.length ||
    element.getAttribute("aria-labelledby") ||
    (!field(element) && element.textContent.trim());
  return shown(css).filter((element) => !named(element)).map(told);
}

/** Ids that are there twice. */
function repeated() {
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  return ids.filter((id, i) => ids.indexOf(id) !== i);
}

/** References to ids that are not there. */
function dangling() {
  const wrong = (name) => (element) => !document.getElementById(element.getAttribute(name));
  return ["aria-controls", "aria-describedby", "aria-labelledby", "for"].flatMap((name) =>
    [...document.querySelectorAll(`[${name}]`)].filter(wrong(name)).map(told),
  );
}

/** Levels of the headings, from top to bottom. */
const headings = () => shown("h1, h2, h3, h4, h5, h6").map(({ tagName }) => Number(tagName[1]));

/** Text with less contrast than WCAG AA asks for. */
function faint() {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const layer = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const ground = (element) => {
    const above = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
    return over(layer(getComputedStyle(element).backgroundColor), above);
  };
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [red, green, blue] = colour.map((value) => linear(value / 255));
    return 0.05 + 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (element) => {
    const below = ground(element);
    const pair = [light(over(layer(getComputedStyle(element).color), below)), light(below)];
    return Math.max(...pair) / Math.min(...pair);
  };
  const text = ({ childNodes }) => [...childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return shown("body *")
    .filter((element) => text(element) && !element.closest(".hidden, .skip, option"))
    .filter((element) => contrast(element) < 4.5)
    .map((element) => `${contrast(element)} ${told(element)}`);
}

/** Elements that reach out of the window to the right, other than inside what scrolls by itself. */
function wide() {
  const scrolls = "svg, pre, .frame, .table, .hidden, .skip, .plot, thead, .drawer";
  return shown("body, body *")
    .filter((element) => !element.closest(scrolls) && element.getBoundingClientRect().right > innerWidth + 1)
    .map(told);
}

/** What a model's text must not have become. */
function dangerous() {
  const css = "script, img, svg:not([aria-hidden]), iframe, style, link, form, base, meta, object, embed, input, math";
  const active = (name) => name.startsWith("on") || ["style", "src", "srcdoc", "id", "name"].includes(name);
  const safe = (link) => ["http:", "https:", "mailto:"].includes(link.protocol);
  return [...document.querySelectorAll(".prose *")]
    .filter((element) => element.matches(css) || element.getAttributeNames().some(active) || (element.matches("a") && !safe(element)))
    .map(told);
}

/** The longest animation or transition, in seconds. */
function longest() {
  const times = ({ animationDuration, transitionDuration }) => [animationDuration, transitionDuration];
  const seconds = (element) => times(getComputedStyle(element)).flatMap((list) => list.split(", ").map(parseFloat));
  return Math.max(...[...document.querySelectorAll("*")].flatMap(seconds));
}

// Numbers as people read them; a dash for what is not known.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const known = (write) => (value) => (value == null || Number.isNaN(value) ? "–" : write(value));

export const count = known((value) => whole.format(value));
export const rate = known((value) => (value < 10 && value % 1 ? value.toFixed(1) : short.format(value)));
export const percent = known((value) => {
  const share = value * 100;
  return `${share < 10 && share % 1 ? share.toFixed(1) : Math.round(share)}%`;
});
export const seconds = known((value) => {
  if (value < 0.0995) return `${Number((value * 1000).toPrecision(2))} ms`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 60 ? `${minutes} min ${Math.floor(value % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
});

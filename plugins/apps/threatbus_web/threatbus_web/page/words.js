// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (n) => (n < 100000 ? whole.format(n) : short.format(n));

export function rate(n) {
  if (n > 0 && n < 10) return n.toFixed(1);
  return count(Math.round(n));
}

export function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of units) {
    const n = Math.floor(left / size);
    left %= size;
    if (n || parts.length) parts.push(`${n} ${unit}`);
  }
  return parts.slice(0, 2).filter((part, n) => !n || !part.startsWith("0 ")).join(" ") || "0 s";
}

export function lag(seconds) {
  if (seconds < 0.05) return "–";
  return seconds < 10 ? `${seconds.toFixed(1)} s` : span(seconds);
}

export function bytes(n) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (n < 1024) return unit === "B" ? `${n} B` : `${n.toFixed(1)} ${unit}`;
    n /= 1024;
  }
  return `${n.toFixed(1)} GiB`;
}

export const clock = (text) => new Date(text).toLocaleTimeString("en-GB");

export function day(text) {
  const moment = new Date(text);
  const today = moment.toDateString() === new Date().toDateString();
  const date = moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return today ? clock(text) : `${date} ${clock(text).slice(0, 5)}`;
}

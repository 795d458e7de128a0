// A small plot of one number over the span that the bus remembers.

import { svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 64;
const ROOM = 6;

// `points` are [seconds since the epoch, value]; the right edge is the newest of them.
export function plot(points, spanSeconds, label) {
  const figure = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label,
  });
  figure.append(svg("line", { class: "plot-base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }));
  if (points.length < 2) return figure;
  const end = points.at(-1)[0];
  const peak = Math.max(...points.map((point) => point[1]), 1e-9);
  const places = points.map(([time, value]) => [
    WIDTH * (1 - (end - time) / spanSeconds), HEIGHT - 1 - (HEIGHT - ROOM - 1) * (value / peak),
  ]);
  const line = places.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" L");
  const [first, last] = [places[0][0].toFixed(1), places.at(-1)[0].toFixed(1)];
  figure.append(
    svg("path", { class: "plot-area", d: `M${first},${HEIGHT - 1} L${line} L${last},${HEIGHT - 1} Z` }),
    svg("path", { class: "plot-line", d: `M${line}` }),
  );
  return figure;
}

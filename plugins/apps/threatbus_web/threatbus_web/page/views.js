// What is shown of what the bus says; each function fills one part of the page.

import { $, fill, make } from "./dom.js";
import { plot } from "./plot.js";
import { bytes, clock, count, day, lag, rate, span } from "./words.js";

const STALLED_SECONDS = 5;
const MOST_SUBSCRIBERS = 100;

export function showState(status) {
  $("main").classList.remove("unknown");
  const ready = status.ready;
  const pill = $("state");
  pill.dataset.state = ready ? "ready" : "unready";
  pill.textContent = ready ? "Ready" : status.state === "running" ? "Not ready" : status.state;
  document.title = ready ? "Threat Bus" : "(!) Threat Bus";
  fill(
    $("facts"),
    ...[["up for", span(status.uptime_seconds)], ["accepted", count(status.accepted)], ["version", status.version]].map(
      ([term, text]) => make("div", {}, make("dt", {}, term), make("dd", {}, text)),
    ),
  );
  const problems = [...status.problems, ...stalled(status)];
  $("problems").hidden = !problems.length;
  fill($("problems"), ...problems.map((text) => make("li", {}, text)));
}

export function showGone(since) {
  $("state").dataset.state = "gone";
  $("state").textContent = "No answer";
  document.title = "(!) Threat Bus: no answer";
  $("gone").hidden = false;
  $("gone").textContent =
    `The bus has not answered since ${clock(since)}. Below is what was known then; this page goes on trying. ` +
    "Is it running? On its machine, its log and `threatbus status` say more.";
}

export function showBack() {
  $("gone").hidden = true;
}

const stalledSeconds = (subscriber) => subscriber.stalled_seconds ?? 0;

function stalled(status) {
  return Object.entries(status.subscribers)
    .filter(([, each]) => stalledSeconds(each) > STALLED_SECONDS)
    .map(([name, each]) => `${name} has taken nothing for ${span(stalledSeconds(each))} although ${count(waiting(each))} messages wait: see what its reader does`);
}

// Meters

const METERS = [
  { id: "in", field: 1, title: "Messages in", unit: "/s", total: (s) => `${count(s.accepted)} since the start` },
  { id: "out", field: 2, title: "Handed to subscribers", unit: "/s", total: (s) => `${count(Object.keys(s.subscribers).length)} subscribed` },
  { id: "waiting", field: 5, title: "Waiting in outqs", unit: "", total: (s) => `${bytes(sum(s.subscribers, "bytes"))}, ${count(sum(s.subscribers, "dropped"))} dropped` },
  { id: "rejected", field: 3, title: "Rejected", unit: "/s", total: (s) => `${count(total(s.rejected))} since the start` },
];

const sum = (things, field) => Object.values(things).reduce((all, each) => all + each[field], 0);
const total = (counts) => Object.values(counts).reduce((all, each) => all + each, 0);

export function showMeters(status, history) {
  for (const meter of METERS) {
    const points = history.points.map((point) => [point[0], point[meter.field]]);
    const now = meter.id === "waiting" ? sum(status.subscribers, "messages") : (points.at(-1)?.[1] ?? 0);
    const peak = Math.max(0, ...points.map((point) => point[1]));
    const shown = meter.unit ? rate(now) : count(now);
    const peakShown = `peak ${meter.unit ? rate(peak) : count(peak)}${meter.unit}`;
    const label = `${meter.title}, the last quarter of an hour: now ${shown}${meter.unit}, ${peakShown}`;
    const card = $(`meter-${meter.id}`);
    card.dataset.tone = meter.id === "rejected" && now > 0 ? "bad" : "";
    fill(
      card,
      make("h2", {}, meter.title),
      make("p", { class: "now" }, shown, meter.unit ? make("small", {}, "per second") : ""),
      make("p", { class: "more" }, `${meter.total(status)} · ${peakShown}`),
      plot(points, history.span_seconds, label),
      make("p", { class: "axis", "aria-hidden": "true" }, make("span", {}, `${span(history.span_seconds)} ago`), make("span", {}, "now")),
    );
  }
}

// Plugins and subscribers

export function showPlugins(status) {
  fill($("plugins"), ...status.plugins.map(plugin));
}

function plugin(each) {
  const down = each.connections.some((connection) => connection.state === "down");
  const [tone, word] = each.state === "lost" ? ["bad", "did not start"] : down ? ["bad", "not connected"] : ["good", "running"];
  const restarts = each.worker_restarts ? `${each.worker_restarts} restarts` : "";
  return make(
    "li",
    {},
    make(
      "div",
      { class: "plugin-line" },
      make("strong", {}, each.name),
      make("span", { class: "muted" }, each.kind),
      restarts ? make("span", { class: "mark", "data-tone": "warn" }, restarts) : "",
      make("span", { class: "mark", "data-tone": tone }, word),
    ),
    each.connections.length ? make("ul", { class: "connections" }, ...each.connections.map(connection)) : "",
  );
}

function connection(each) {
  const again = each.reconnects ? `, back ${each.reconnects} ${each.reconnects === 1 ? "time" : "times"}` : "";
  const state = each.state === "idle" ? "not needed so far" : `${each.state} for ${span(each.since_seconds)}${again}`;
  return make(
    "li",
    {},
    make("span", { class: "dot", "data-state": each.state }),
    make("span", {}, `${each.name}: ${state}`, each.detail ? make("span", { class: "why" }, ` · ${each.detail}`) : ""),
  );
}

const waiting = (each) => Math.max(each.messages, each.waiting ?? 0);

function stateOf(each) {
  if (each.closed) return ["bad", "ended, its outq was full"];
  if (stalledSeconds(each) > STALLED_SECONDS) return ["bad", `stalled for ${span(stalledSeconds(each))}`];
  if (each.connected === false) return ["warn", "away"];
  return ["good", "reading"];
}

export function showSubscribers(status) {
  const all = Object.entries(status.subscribers);
  const worst = ([, each]) => stalledSeconds(each) * 1e9 + waiting(each);
  all.sort((a, b) => worst(b) - worst(a));
  $("subscribers-count").textContent = all.length > MOST_SUBSCRIBERS ? `the ${MOST_SUBSCRIBERS} that wait most, of ${count(all.length)}` : "";
  $("subscribers-empty").hidden = all.length > 0;
  $("subscribers").closest("table").hidden = !all.length;
  fill($("subscribers"), ...all.slice(0, MOST_SUBSCRIBERS).map(([name, each]) => subscriber(name, each)));
}

function subscriber(name, each) {
  const [tone, word] = stateOf(each);
  const topics = each.topics.map((topic) => topic.replace(/^stix2\//, "") || "everything").join(", ");
  return make(
    "tr",
    {},
    make("td", {}, name, make("span", { class: "muted" }, [each.plugin, topics || "no topics"].join(" · "))),
    make("td", {}, make("span", { class: "mark", "data-tone": tone }, word)),
    make("td", { class: "num", "data-name": "waiting", title: bytes(each.bytes) }, count(waiting(each))),
    make("td", { class: "num", "data-name": "lag" }, lag(each.lag_seconds)),
    make("td", { class: "num", "data-name": "given" }, count(each.put)),
    make("td", { class: "num", "data-name": "dropped", "data-tone": each.dropped ? "bad" : undefined }, count(each.dropped)),
  );
}

// Recent messages

const OPERATIONS = { ADD: ["good", "add"], EDIT: ["calm", "edit"], REMOVE: ["warn", "remove"] };

export function message(each, onTrace) {
  const [tone, word] = each.type === "sighting" ? ["calm", "sighting"] : (OPERATIONS[each.operation] ?? ["", each.type]);
  const about = each.about || (each.sighting_of ? `of ${each.sighting_of}` : each.id);
  const from = [each.plugin, each.source, each.name].filter(Boolean).join(" · ");
  // Who had it when it passed. By way of a broker that is nobody yet, so an empty list says nothing.
  const to = each.to.length ? `→ ${each.to.join(", ")}${each.to_more ? `, ${each.to_more} more` : ""}` : "";
  return make(
    "li",
    {},
    make("time", { datetime: each.time }, clock(each.time)),
    make("span", {}, make("span", { class: "mark", "data-tone": tone }, word)),
    make("button", { class: "about", type: "button", title: "Trace it", onclick: () => onTrace(each.sighting_of || each.id) }, about),
    make("span", { class: "from", title: from }, from),
    make("span", { class: "to", title: to }, to),
  );
}

// Rejected

export function showRejected(status, rejected) {
  const reasons = Object.entries(status.rejected).sort((a, b) => b[1] - a[1]);
  $("rejected-count").textContent = reasons.length ? `${count(total(status.rejected))} since the start` : "";
  $("rejected-empty").hidden = rejected.newest.length > 0;
  fill($("reasons"), ...reasons.slice(0, 12).map(([reason, n]) => make("li", {}, make("b", {}, count(n)), reason)));
  fill(
    $("rejected"),
    ...rejected.newest.map((each) =>
      make(
        "li",
        {},
        make("span", { class: "number" }, `#${each.number}`),
        make("time", { datetime: each.time }, day(each.time)),
        make("span", { class: "muted origin" }, each.origin),
        make("span", { class: "why" }, each.reason),
        make("span", { class: "muted bytes" }, bytes(each.size)),
      ),
    ),
  );
}

// Trace

const STATES = { taken: "good", waiting: "warn" };

export function showTrace(wanted, answer) {
  const looked = answer.looked_through;
  const nothing = make(
    "p", { class: "muted" },
    `${wanted} is not among the ${count(looked.messages)} messages that the bus still knows. What passed before is ` +
      "known to its source only: threatbus tail --snapshot DAYS asks for it.",
  );
  fill($("trace-body"), ...(answer.objects.length ? answer.objects.map(traced) : [nothing]));
}

function traced(each) {
  const facts = [each.withdrawn ? `withdrawn at ${clock(each.withdrawn_at)}` : "in force, as far as the bus knows", each.sightings === 1 ? "1 sighting" : `${count(each.sightings)} sightings`];
  return make(
    "section",
    { class: "traced" },
    make("h3", {}, each.about || each.id),
    make("p", { class: "muted" }, each.id),
    make("p", { class: "muted" }, facts.join(" · ")),
    make("ol", { class: "steps" }, ...each.messages.map(step)),
  );
}

function step(each) {
  const from = [each.plugin || "unknown", each.source].filter(Boolean).join(" · ");
  const to = each.to.map((to) => make("span", { class: "mark", "data-tone": STATES[to.state] }, `${to.subscriber}: ${to.state}`));
  return make(
    "li",
    {},
    make("div", {}, `${day(each.time)} · ${each.operation || each.type} from ${from} (${bytes(each.bytes)})`),
    make("div", { class: "to" }, ...(to.length ? to : [make("span", { class: "mark" }, "nobody has it so far")])),
  );
}

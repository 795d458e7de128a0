// Asks the bus again and again, follows what passes, and shows both.

import { follow, get, token, Unauthorised } from "./api.js";
import { $, fill } from "./dom.js";
import * as views from "./views.js";
import { count } from "./words.js";

const LOOK_MS = 2000;
const AGAIN_MS = 2000;
const TYPING_MS = 250;
const MOST_RECENT = 200;

const known = { status: null, history: null, rejected: null, heard: Date.now() };
let following = null;
let paused = false;
let held = [];

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// The token

function signIn(wrong) {
  if ($("sign-in").open) return;
  $("sign-in-error").hidden = !wrong;
  $("sign-in").showModal();
  $("token").focus();
}

$("sign-in").addEventListener("cancel", (event) => event.preventDefault());
$("sign-in-form").addEventListener("submit", () => {
  token.set($("token").value.trim());
  $("token").value = "";
  start();
});

function refused() {
  const wrong = token.get() !== "";
  token.forget();
  following?.abort();
  signIn(wrong);
}

// Status

async function look() {
  try {
    [known.status, known.history, known.rejected] = await Promise.all(["status", "history", "rejected"].map((name) => get(`/api/${name}`)));
    known.heard = Date.now();
    views.showBack();
    show();
  } catch (error) {
    if (error instanceof Unauthorised) return refused();
    views.showGone(known.heard);
  }
}

function show() {
  const { status, history, rejected } = known;
  views.showState(status);
  views.showMeters(status, history);
  views.showPlugins(status);
  views.showSubscribers(status);
  views.showRejected(status, rejected);
}

async function keepLooking() {
  for (;;) {
    if (token.get() && !document.hidden) await look();
    await pause(LOOK_MS);
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && token.get()) look();
});

// What passes

async function keepFollowing() {
  following?.abort();
  const mine = (following = new AbortController());
  const wanted = new URLSearchParams({ backlog: MOST_RECENT, text: $("text").value.trim(), type: $("type").value });
  while (!mine.signal.aborted) {
    try {
      await follow(`/api/stream?${wanted}`, mine.signal, take);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error instanceof Unauthorised) return refused();
    }
    await pause(AGAIN_MS);
  }
}

let fresh = [];
let skipped = 0;

function take(kind, data) {
  if (kind === "open") {
    fresh = [];
    held = [];
    skipped = 0;
    $("recent").replaceChildren();
  } else if (kind === "skipped") {
    skipped += data.count;
  } else if (paused) {
    held = [...held, data].slice(-MOST_RECENT);
  } else {
    fresh.push(data);
  }
  if (!take.planned) {
    take.planned = true;
    setTimeout(showRecent, 50);
  }
}

function showRecent() {
  take.planned = false;
  const list = $("recent");
  const live = list.childElementCount > 0;
  for (const each of fresh.slice(-MOST_RECENT)) {
    const row = views.message(each, trace);
    if (live) row.classList.add("new");
    list.prepend(row);
  }
  fresh = [];
  while (list.childElementCount > MOST_RECENT) list.lastChild.remove();
  const none = !list.childElementCount;
  $("recent-empty").hidden = !none;
  const filtered = $("text").value.trim() || $("type").value;
  $("recent-empty").textContent = filtered
    ? "Nothing of what the bus still knows matches. What comes from now on and does will be seen here."
    : "Nothing has passed yet. `threatbus publish FILE` would be seen here.";
  const notes = [];
  if (paused && held.length) notes.push(`${count(held.length)} more have passed while this list is paused.`);
  if (skipped) notes.push(`${count(skipped)} messages passed too quickly to be looked at. Another search looks through what the bus still knows.`);
  $("recent-note").textContent = notes.join(" ");
}

let typing = 0;
$("text").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(keepFollowing, TYPING_MS);
});
$("type").addEventListener("change", keepFollowing);
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  $("pause").textContent = paused ? "Go on" : "Pause";
  if (!paused) [fresh, held] = [held, []];
  showRecent();
});

// Trace

async function trace(wanted) {
  fill($("trace-body"), "Looking …");
  $("trace").showModal();
  try {
    views.showTrace(wanted, await get(`/api/trace?of=${encodeURIComponent(wanted)}`));
  } catch (error) {
    if (error instanceof Unauthorised) return refused();
    fill($("trace-body"), "The bus does not answer. This page goes on trying; ask again when it says so.");
  }
}
$("trace-close").addEventListener("click", () => $("trace").close());

function start() {
  look();
  keepFollowing();
}

if (token.get()) start();
else signIn(false);
keepLooking();

// How the page asks the bus: with the token, within a time, and by a stream of events.

const TOKEN = "threatbus token";
const PATIENCE_MS = 5000;

export class Unauthorised extends Error {}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (text) => sessionStorage.setItem(TOKEN, text),
  forget: () => sessionStorage.removeItem(TOKEN),
};

async function request(path, signal) {
  const headers = { Authorization: `Bearer ${token.get()}` };
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  if (answer.status === 401) throw new Unauthorised();
  if (!answer.ok) throw new Error(`${path} answers ${answer.status}`);
  return answer;
}

export async function get(path) {
  return (await request(path, AbortSignal.timeout(PATIENCE_MS))).json();
}

// Calls `take(kind, data)` for each event, until the stream ends or `signal` aborts it.
export async function follow(path, signal, take) {
  const answer = await request(path, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const fields = Object.fromEntries(
        event.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]),
      );
      if (fields.event) take(fields.event, JSON.parse(fields.data));
    }
  }
}

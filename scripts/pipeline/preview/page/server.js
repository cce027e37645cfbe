// What goes to the server and what comes from it.

/** Send a JSON object; returns whether the server took it. */
export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }).catch(() => null);
  return answer?.ok ?? false;
}

/** Return the captions, the ledger and the key times of a unit. */
export async function facts(unit) {
  const answer = await fetch(`facts/${encodeURIComponent(unit)}`);
  return answer.ok ? answer.json() : { captions: [], ledger: [], key_times: [] };
}

/** Call `heard.state`, `heard.still` and `heard.lost` as the server speaks, also after it was started again. */
export function listen(heard) {
  const events = new EventSource("events");
  events.addEventListener("state", (event) => heard.state(JSON.parse(event.data)));
  events.addEventListener("still", (event) => heard.still(JSON.parse(event.data)));
  events.addEventListener("error", () => heard.lost());
}

/** Return a function that runs `work` with the newest arguments, one call at a time and at most every `pause` ms. */
export function newestOnly(work, pause = 0) {
  let waiting = null;
  let busy = false;
  return async function ask(...given) {
    waiting = given;
    if (busy) return;
    busy = true;
    while (waiting) {
      const now = waiting;
      waiting = null;
      await work(...now);
      if (pause) await new Promise((resolve) => setTimeout(resolve, pause));
    }
    busy = false;
  };
}

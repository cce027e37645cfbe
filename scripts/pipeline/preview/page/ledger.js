// What is on screen at the watched moment, and which tensor it comes from.

import { element } from "./dom.js";
import { facts } from "./server.js";

export class Ledger {
  constructor(place, count) {
    Object.assign(this, { place, count });
    this.known = new Map(); // by unit: what the server said, and which edition it was
    this.open = new Set();
  }

  /** Return the facts of a unit if they are here; ask for them if not. */
  of(unit, then) {
    const known = this.known.get(unit.name);
    if (known?.number !== unit.facts) {
      const entry = { number: unit.facts, facts: known?.facts };
      this.known.set(unit.name, entry);
      facts(unit.name).then((found) => {
        entry.facts = found;
        then();
      });
    }
    return this.known.get(unit.name).facts;
  }

  show(found, time) {
    const now = (found?.ledger ?? []).filter((entry) => entry.start <= time + 1e-3 && time < entry.end - 1e-3);
    const groups = new Map();
    for (const entry of now) {
      const name = `${entry.origin.split("[")[0]}|${entry.object}`;
      groups.set(name, [...(groups.get(name) ?? []), entry]);
    }
    const text = JSON.stringify(now);
    if (text === this.text) return;
    this.text = text;
    this.count.textContent = now.length ? `${now.length} values` : "";
    const rows = [...groups].map(([name, entries]) => this.group(name, entries));
    const focused = document.activeElement?.closest("#ledger details")?.dataset.name;
    this.place.replaceChildren(...(rows.length ? rows : [element("p", { class: "empty" }, "No number is on screen.")]));
    rows.find((row) => row.dataset.name === focused)?.firstChild.focus();
  }

  group(name, entries) {
    const [origin, object] = name.split("|");
    const rows = entries.map((entry) => element("tr", {}, element("td", {}, entry.shown), element("td", {}, entry.origin)));
    const words = entries.length > 1 ? `${object} · ${entries.length}` : object;
    const details = element("details", {}, element("summary", {}, element("code", {}, origin), element("span", {}, words)),
      element("div", { tabindex: "0", role: "group", "aria-label": origin }, element("table", {}, element("tbody", {}, ...rows))));
    details.dataset.name = name;
    details.open = this.open.has(name);
    details.addEventListener("toggle", () => (details.open ? this.open.add(name) : this.open.delete(name)));
    return details;
  }
}

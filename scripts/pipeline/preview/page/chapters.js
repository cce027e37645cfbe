// The list of chapters and the time line.

import { element, clock } from "./dom.js";

const WORDS = { fresh: "up to date", stale: "waiting", rendering: "rendering", failed: "failed" };
const USUAL_SECONDS = 14; // of a chapter that was not played yet

export class Chapters {
  constructor(list, segments, scrub, player) {
    Object.assign(this, { list, segments, scrub, player });
    scrub.addEventListener("input", () => {
      let rest = Number(scrub.value);
      for (const unit of player.line) {
        const seconds = unit.seconds ?? USUAL_SECONDS;
        if (rest < seconds || unit === player.line.at(-1)) return player.seek(unit.name, Math.min(rest, seconds));
        rest -= seconds;
      }
      return undefined;
    });
    // arrows step by frames, as everywhere on the page
    scrub.addEventListener("keydown", (event) => { if (event.key.startsWith("Arrow")) event.preventDefault(); });
  }

  update() {
    const { units } = this.player.state;
    const names = units.map((unit) => unit.name).join();
    if (names !== this.names) {
      this.names = names;
      this.list.replaceChildren(...units.map((unit) => this.row(unit)));
    }
    let number = 0;
    for (const [index, unit] of units.entries()) {
      if (unit.kind === "chapter") number += 1;
      const row = this.list.children[index];
      row.className = `${unit.kind} ${unit.state}`;
      row.style.setProperty("--share", unit.share);
      row.querySelector(".number").textContent = unit.kind === "chapter" ? number : "";
      row.querySelector(".name").textContent = unit.title;
      row.querySelector(".clock").textContent = unit.seconds ? clock(unit.seconds) : "";
      row.querySelector(".hidden-text").textContent = WORDS[unit.state];
      row.querySelector("button").title = WORDS[unit.state];
      row.querySelector("button").setAttribute("aria-current", String(unit.name === this.player.moment.unit));
    }
  }

  row(unit) {
    const button = element("button", { type: "button" }, element("span", { class: "mark" }),
      element("span", { class: "number" }), element("span", { class: "name" }), element("span", { class: "clock" }), element("span", { class: "hidden-text" }));
    button.dataset.unit = unit.name;
    button.addEventListener("click", () => this.player.go(unit.name, 0));
    return element("li", {}, button);
  }

  /** Put the time line and its thumb where the moment is. */
  move() {
    const line = this.player.line;
    if (this.segments.childElementCount !== line.length) {
      this.segments.replaceChildren(...line.map(() => element("span")));
    }
    let start = 0;
    let total = 0;
    for (const [index, unit] of line.entries()) {
      const seconds = unit.seconds ?? USUAL_SECONDS;
      const segment = this.segments.children[index];
      const isHere = unit.name === this.player.moment.unit;
      segment.className = `${unit.state} ${isHere ? "current" : ""}`;
      segment.style.flex = `${seconds} 1 0`;
      segment.style.setProperty("--share", unit.state === "fresh" ? 1 : unit.share * (unit.state === "rendering"));
      if (isHere) start = total;
      total += seconds;
    }
    const { unit } = this.player;
    this.scrub.max = total;
    this.scrub.value = start + this.player.moment.time;
    this.scrub.setAttribute("aria-valuetext", `${unit?.title ?? ""}, ${clock(start + this.player.moment.time)} of ${clock(total)}`);
    return { start, total };
  }
}

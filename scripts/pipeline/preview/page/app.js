// The live page: what the server says goes to the parts of the page, what a reader does goes to the server.

import { Chapters } from "./chapters.js";
import { clock, element } from "./dom.js";
import { Form } from "./form.js";
import { listenToKeys } from "./keys.js";
import { Ledger } from "./ledger.js";
import { showMistake } from "./mistakes.js";
import { Overlay } from "./overlay.js";
import { Player } from "./player.js";
import { listen, newestOnly, post } from "./server.js";

const FORM_MS = 120; // between two settings while a slider moves
const STILL_WAIT_MS = 1500;
const at = (id) => document.getElementById(id);

let state = null;
let texts = null; // where the words of the still are
let stillArrived = () => {};

const player = new Player(at("stage"), () => showMoment());
window.player = player; // for the console, and for tests
const chapters = new Chapters(at("chapters"), at("segments"), at("scrub"), player);
const ledger = new Ledger(at("ledger"), at("ledger-count"));
const overlay = new Overlay(at("overlay"));
// while a slider moves, each setting waits for the picture of the one before
const choose = newestOnly(async (choice) => {
  const drawn = new Promise((resolve) => { stillArrived = resolve; });
  const timeout = new Promise((resolve) => { setTimeout(resolve, STILL_WAIT_MS); });
  if (await post("choose", choice)) await Promise.race([drawn, timeout]);
}, FORM_MS);
const form = new Form(at("form"), (settings) => choose({ ...choice(), settings }));

function choice() {
  return { theme: state.theme, quality: state.quality, settings: state.settings };
}

// -- what the server says --------------------------------------------------------------------------------------------

listen({
  state(news) {
    state = news;
    document.documentElement.dataset.theme = state.theme;
    document.title = `${state.topic.title} · preview`;
    at("title").textContent = state.topic.title;
    at("theme").textContent = state.theme === "dark" ? "Light" : "Dark";
    if (at("quality").childElementCount === 0) {
      at("quality").append(...state.qualities.map(({ name, label }) => element("option", { value: name }, label)));
    }
    at("quality").value = state.quality;
    at("command").textContent = state.command;
    at("refused").hidden = !state.refused;
    at("refused").textContent = state.refused ?? "";
    if (state.refused || state.error) stillArrived();
    if (state.form.length && !state.refused) form.update(state.form);
    at("reset").hidden = !form.isChanged;
    player.update(state);
    if (player.unit) chapters.update();
    showStatus();
    showGif();
  },
  still(news) {
    stillArrived();
    texts = { moment: `${news.unit} ${player.frame(news.time)}`, places: news.texts };
    player.still(news);
    showMoment();
  },
  lost() {
    at("status").textContent = "The preview has ended; start it again to go on";
  },
});

function showStatus() {
  const units = state.units;
  const fresh = units.filter((unit) => unit.state === "fresh" && unit.judged).length;
  const failed = state.error || units.some((unit) => unit.state === "failed");
  const words = state.note ?? (fresh === units.length ? "Up to date" : `${fresh} of ${units.length} rendered`);
  at("status").textContent = failed ? "There is a mistake: the last good picture stays" : words;
}

function showMoment() {
  const { unit } = player;
  if (!unit) return;
  const { start, total } = chapters.move();
  document.body.classList.toggle("playing", player.playing);
  at("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
  at("clock").replaceChildren(clock(start + player.moment.time), element("span", { class: "muted" }, ` / ${clock(total)}`));
  at("badge").hidden = !player.waiting;
  at("badge").textContent = unit.state === "failed" ? "cannot be rendered" : "rendering this chapter";
  at("sentence").textContent = unit.sentence;
  at("export").textContent = unit.kind === "loop" ? "Export the loop as GIF" : "Export this chapter as GIF";
  at("stage").dataset.unit = unit.name;
  at("still").alt = `${unit.title}, ${clock(player.moment.time)}`;
  for (const row of at("chapters").querySelectorAll("button")) {
    row.setAttribute("aria-current", String(row.dataset.unit === unit.name));
  }
  showMistake(at("error"), state.error ?? (unit.state === "failed" ? unit.error : null), unit.title);
  ledger.show(ledger.of(unit, showMoment), player.moment.time);
  if (!at("overlay").hasAttribute("hidden")) overlay.show(texts?.moment === player.key ? texts.places : null);
}

function showGif() {
  const { gif } = state;
  at("export").disabled = gif?.state === "rendering" || !player.unit;
  at("gif-progress").hidden = gif?.state !== "rendering";
  at("gif-progress").value = gif?.share ?? 0;
  at("gif-row").hidden = !gif;
  if (!gif) return;
  at("gif-command").textContent = gif.command;
  const file = gif.files[0];
  const text = JSON.stringify(gif.files) + gif.error;
  if (at("gif-result").dataset.text === text) return;
  at("gif-result").dataset.text = text;
  at("gif-result").replaceChildren(...(file
    ? [element("a", { href: `gif/${file.name}`, download: file.name }, file.path), ` · ${Math.ceil(file.bytes / 1000)} kB`]
    : [gif.error ?? ""]));
}

// -- what a reader does ----------------------------------------------------------------------------------------------

function toggle(button) {
  const isOn = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(isOn));
  return isOn;
}

/** Go to the end of the next or last caption. */
function beat(by) {
  const times = (ledger.known.get(player.moment.unit)?.facts?.key_times ?? []).map((time) => time - 1 / player.rate);
  const { time } = player.moment;
  const next = by > 0 ? times.find((each) => each > time + 1e-3) : times.findLast((each) => each < time - 1e-3);
  if (next !== undefined) player.seek(player.moment.unit, next);
  else if (by > 0) player.chapter(1);
  else player.seek(player.moment.unit, 0);
}

const act = {
  play: () => player.toggle(),
  back: () => player.step(-1 / player.rate),
  forward: () => player.step(1 / player.rate),
  previous: () => player.chapter(-1),
  next: () => player.chapter(1),
  captions: () => { at("mask").hidden = toggle(at("captions")); },
  areas: () => {
    at("overlay").toggleAttribute("hidden", !toggle(at("areas"))); // an SVG element has no `hidden` of its own
    showMoment();
  },
  small: () => at("stage").classList.toggle("small", toggle(at("small"))),
  theme: () => choose({ ...choice(), theme: state.theme === "dark" ? "light" : "dark" }),
  help: () => at("keys").showModal(),
  reset: () => form.reset(),
  export: () => post("export", { unit: player.moment.unit }),
};
for (const [id, action] of Object.entries(act)) at(id).addEventListener("click", action);
at("quality").addEventListener("change", () => choose({ ...choice(), quality: at("quality").value }));
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(at(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// after a click the keys are the player's again; who came by keyboard stays where they are
document.addEventListener("click", (event) => {
  if (event.detail > 0 && event.target.closest("main button")) at("stage").focus({ preventScroll: true });
});

listenToKeys({
  Space: act.play, k: act.play, ArrowLeft: act.back, ArrowRight: act.forward,
  "Shift+ArrowLeft": () => player.step(-1), "Shift+ArrowRight": () => player.step(1),
  ",": () => beat(-1), ".": () => beat(1), "[": act.previous, "]": act.next, PageUp: act.previous, PageDown: act.next,
  Home: () => player.seek(player.moment.unit, 0), End: () => player.seek(player.moment.unit, Infinity),
  c: act.captions, s: act.areas, g: act.small, t: act.theme, "?": act.help,
});

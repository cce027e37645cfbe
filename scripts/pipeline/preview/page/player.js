// The stage: a still or a video of the watched moment. What is shown is always of the saved sources, or the last good
// picture until there is a newer one.

import { newestOnly, post } from "./server.js";

const REPORT_MS = 150;
const STILL_TIMEOUT_MS = 2000;

export class Player {
  /** `told` is called whenever the moment, or whether it plays, has changed. */
  constructor(stage, told) {
    this.videos = [...stage.querySelectorAll("video")];
    this.image = stage.querySelector("img");
    this.told = told;
    this.state = null;
    this.moment = { unit: null, time: 0 };
    this.playing = false;
    this.waiting = false; // it plays, but there is no video of the moment yet
    this.shown = null; // the moment that is on the stage: "unit frame"
    this.edition = 0; // the generation of the picture on the stage
    this.loading = null; // the still that is being loaded
    this.front = this.videos[0];
    this.report = newestOnly((moment) => post("watch", { ...moment, draw: false }), REPORT_MS);
    this.draw = newestOnly((moment) => this.askForStill(moment));
    for (const video of this.videos) {
      video.addEventListener("ended", () => this.ended(video));
      video.addEventListener("seeked", () => this.seeked(video));
      video.addEventListener("error", () => video.removeAttribute("src"));
    }
  }

  // -- what there is ---------------------------------------------------------------------------------------------

  get unit() {
    return this.state?.units.find((unit) => unit.name === this.moment.unit);
  }

  /** The units on the time line: the video, or the loop alone. */
  get line() {
    const units = this.state?.units ?? [];
    return this.unit?.kind === "loop" ? [this.unit] : units.filter((unit) => unit.kind !== "loop");
  }

  get rate() {
    return this.state?.frame_rate ?? 15;
  }

  isReady(unit) {
    return Boolean(unit?.state === "fresh" && unit.judged && unit.video);
  }

  frame(time) {
    return Math.floor(time * this.rate + 1e-3);
  }

  get key() {
    return `${this.moment.unit} ${this.frame(this.moment.time)}`;
  }

  lastTime(unit) {
    return Math.max(0, (unit?.seconds ?? Infinity) - 1 / this.rate);
  }

  // -- what happens ----------------------------------------------------------------------------------------------

  update(state) {
    const first = this.state === null;
    this.state = state;
    if (!this.unit && state.units.length) {
      const { unit, time } = state.watched;
      this.moment = state.units.some((each) => each.name === unit) ? { unit, time } : { unit: state.units[0].name, time: 0 };
    }
    if (!this.unit) return;
    if (this.moment.time > this.lastTime(this.unit)) this.moment.time = this.lastTime(this.unit);
    if (first || !this.shown || this.shown !== this.key || this.playing) this.show();
    this.told();
  }

  /**
   * A still was drawn: show it if it is of this moment and there is no picture of this generation yet. When playing, the
   * video has become stale: go to where the still is.
   */
  still({ unit, time, url, generation }) {
    this.answered?.();
    if (generation !== this.state?.generation || (this.shown === this.key && this.edition === generation)) return;
    const isHere = unit === this.moment.unit;
    if (this.playing && (!isHere || this.isReady(this.unit))) return;
    if (this.playing) this.moment.time = time;
    if (!isHere || this.frame(time) !== this.frame(this.moment.time)) {
      this.draw({ ...this.moment }); // the server had not heard yet that the page has moved on
      return;
    }
    const loading = (this.loading = new Image());
    loading.src = url;
    loading.decode().then(() => {
      if (this.loading !== loading || unit !== this.moment.unit || this.frame(time) !== this.frame(this.moment.time)) return;
      this.image.src = url;
      this.image.hidden = false;
      this.edition = generation;
      this.shown = this.key;
      this.image.dataset.generation = generation;
    }, () => {});
  }

  /** Go to a moment and pause there. */
  seek(unit, time) {
    this.playing = false;
    this.go(unit, time);
  }

  go(unit, time) {
    const of = this.state?.units.find((each) => each.name === unit);
    if (!of) return;
    this.moment = { unit, time: Math.min(Math.max(0, time), this.lastTime(of)) };
    this.show();
    this.told();
  }

  /** Go by seconds along the time line, over the ends of chapters. */
  step(seconds) {
    const line = this.line;
    let at = line.findIndex((unit) => unit.name === this.moment.unit);
    let time = Math.round((this.moment.time + seconds) * this.rate) / this.rate;
    if (time < 0 && at > 0) {
      at -= 1;
      time += line[at].seconds ?? 0;
    } else if (time > this.lastTime(line[at]) && at < line.length - 1) {
      time -= line[at].seconds;
      at += 1;
    }
    if (line[at]) this.seek(line[at].name, Math.max(0, time));
  }

  chapter(by) {
    const line = this.line;
    const at = line.findIndex((unit) => unit.name === this.moment.unit) + by;
    if (by < 0 && this.moment.time > 1) this.go(this.moment.unit, 0);
    else if (line[at]) this.go(line[at].name, 0);
  }

  toggle() {
    this.playing = !this.playing;
    const line = this.line;
    const atEnd = this.unit === line[line.length - 1] && this.moment.time >= this.lastTime(this.unit) - 1e-6;
    if (this.playing && atEnd) this.moment = { unit: line[0]?.name ?? null, time: 0 };
    if (!this.playing) this.moment.time = this.frame(this.moment.time) / this.rate;
    this.show();
    this.told();
  }

  // -- showing ---------------------------------------------------------------------------------------------------

  show() {
    this.waiting = this.playing && !this.isReady(this.unit);
    if (!this.isReady(this.unit)) {
      this.pauseVideos();
      if (this.shown !== this.key) this.draw({ ...this.moment });
      else this.report({ ...this.moment });
    } else if (this.playing) {
      const video = this.load(this.unit.video);
      if (video.paused) this.start(video);
      this.prepareNext();
    } else {
      this.pauseVideos();
      this.seekVideo(this.load(this.unit.video));
      this.report({ ...this.moment });
    }
  }

  /** Return the video element that holds a file; the one on the stage stays until the other has its picture. */
  load(url) {
    const found = this.videos.find((video) => video.getAttribute("src") === url);
    if (found) return found;
    const video = this.videos.find((each) => each !== this.front);
    video.src = url;
    return video;
  }

  seekVideo(video) {
    const wanted = (this.frame(this.moment.time) + 0.5) / this.rate; // the middle of a frame, so rounding is harmless
    if (video.seeking || video.readyState === 0) {
      video.dataset.again = "yes";
      if (video.readyState === 0) video.addEventListener("loadedmetadata", () => this.seekAgain(video), { once: true });
      return;
    }
    delete video.dataset.again;
    if (Math.abs(video.currentTime - wanted) > 1e-4) video.currentTime = wanted;
    else this.seeked(video);
  }

  seekAgain(video) {
    if (!video.dataset.again) return;
    delete video.dataset.again;
    if (this.isReady(this.unit) && video.getAttribute("src") === this.unit.video) this.seekVideo(video);
  }

  seeked(video) {
    if (video.dataset.again) return this.seekAgain(video);
    if (!this.isReady(this.unit) || video.getAttribute("src") !== this.unit.video || this.playing) return undefined;
    this.toFront(video);
    this.shown = this.key;
    this.edition = this.state.generation;
    return undefined;
  }

  toFront(video) {
    this.loading = null;
    this.front = video;
    for (const each of this.videos) each.classList.toggle("shown", each === video);
    this.image.hidden = true;
  }

  async start(video) {
    const unit = this.unit;
    const begin = () => {
      if (!this.playing || this.unit?.name !== unit.name || !this.isReady(this.unit)) return;
      if (Math.abs(video.currentTime - this.moment.time) > 0.5 / this.rate) video.currentTime = this.moment.time;
      video.play().then(() => {
        if (!this.playing) return video.pause();
        this.toFront(video);
        this.shown = null;
        return this.follow(video);
      }, () => {});
    };
    if (video.readyState >= 1) begin();
    else video.addEventListener("loadedmetadata", begin, { once: true });
  }

  /** Keep the moment with the video that plays. */
  follow(video) {
    if (!this.playing || this.waiting || video !== this.front || video.paused) return;
    if (video.getAttribute("src") === this.unit?.video) {
      this.moment.time = Math.min(video.currentTime, this.lastTime(this.unit));
      this.report({ ...this.moment });
      this.told();
    }
    requestAnimationFrame(() => this.follow(video));
  }

  ended(video) {
    if (!this.playing || video.getAttribute("src") !== this.unit?.video) return;
    const line = this.line;
    const next = line[line.indexOf(this.unit) + 1];
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (next) this.go(next.name, 0);
    else if (this.unit.kind === "loop" && !calm) this.go(this.unit.name, 0);
    else this.seek(this.unit.name, this.lastTime(this.unit));
  }

  prepareNext() {
    const line = this.line;
    const next = line[line.indexOf(this.unit) + 1];
    if (this.isReady(next) && this.front.getAttribute("src") === this.unit.video) this.load(next.video);
  }

  pauseVideos() {
    for (const video of this.videos) video.pause();
  }

  async askForStill(moment) {
    const answer = new Promise((resolve) => { this.answered = resolve; });
    const timeout = new Promise((resolve) => { setTimeout(resolve, STILL_TIMEOUT_MS); });
    if (await post("watch", { ...moment, draw: true })) await Promise.race([answer, timeout]);
  }
}

// The parameters of the topic: a control for each field of its Config.

import { element } from "./dom.js";

const STEPS = 200;

export class Form {
  /** `changed` gets the settings that differ from their defaults, as name=value. */
  constructor(form, changed) {
    this.form = form;
    this.changed = changed;
    this.entries = [];
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  update(entries) {
    const shape = JSON.stringify(entries.map(({ value, ...rest }) => rest));
    if (shape !== this.shape) {
      this.shape = shape;
      this.entries = entries.map((entry) => ({ ...entry }));
      this.form.replaceChildren(...this.entries.map((entry) => this.row(entry)));
    }
    // what somebody is moving just now stays in their hands
    for (const [index, entry] of this.entries.entries()) {
      if (!entry.control.contains(document.activeElement)) this.take(entry, entries[index].value);
    }
  }

  reset() {
    for (const entry of this.entries) this.take(entry, entry.default);
    this.tell();
  }

  get isChanged() {
    return this.entries.some((entry) => entry.value !== entry.default);
  }

  tell() {
    this.changed(this.entries.filter((entry) => entry.value !== entry.default).map((entry) => `${entry.name}=${entry.value}`));
  }

  take(entry, value) {
    entry.value = value;
    entry.put(value);
    entry.output.textContent = entry.slider ? value : "";
    entry.label.classList.toggle("changed", value !== entry.default);
  }

  row(entry) {
    const id = `option-${entry.name}`;
    entry.label = element("label", { for: id }, entry.name);
    entry.output = element("output", { class: "number", for: id });
    const range = [entry.minimum ?? "", entry.maximum ?? ""].join("…");
    const help = entry.help + (range === "…" ? "" : ` (${range.replace(/^…/, "at most ").replace(/…$/, " and more")})`);
    const isNumber = entry.kind === "whole" || entry.kind === "number";
    entry.slider = isNumber && entry.minimum !== null && entry.maximum !== null;
    entry.control = this.control(entry);
    entry.control.id = id;
    entry.control.setAttribute("aria-describedby", `${id}-help`);
    entry.control.addEventListener("input", () => {
      this.take(entry, entry.get());
      this.tell();
    });
    return element("div", { class: "option" }, entry.label, entry.output, entry.control,
      element("p", { class: "help", id: `${id}-help` }, help));
  }

  control(entry) {
    if (entry.kind === "choice") {
      const select = element("select", {}, ...entry.choices.map((choice) => element("option", { value: choice }, choice)));
      return this.plain(entry, select);
    }
    if (entry.kind === "switch") {
      const box = element("input", { type: "checkbox" });
      entry.put = (value) => { box.checked = value === "true"; };
      entry.get = () => String(box.checked);
      return box;
    }
    if (entry.slider) return this.slider(entry);
    const input = element("input", { type: "text", spellcheck: "false" });
    return this.plain(entry, input);
  }

  plain(entry, control) {
    entry.put = (value) => { if (control.value !== value) control.value = value; };
    entry.get = () => control.value;
    return control;
  }

  slider(entry) {
    const { minimum: low, maximum: high, kind, log } = entry;
    const whole = kind === "whole" || (Number.isInteger(low) && Number.isInteger(high) && high - low >= STEPS);
    const step = log ? 1 / STEPS : kind === "whole" ? 1 : (high - low) / STEPS;
    const input = element("input", { type: "range", min: log ? 0 : low, max: log ? 1 : high, step });
    entry.put = (value) => { input.value = log ? Math.log(value / low) / Math.log(high / low) : value; };
    entry.get = () => {
      let value = log ? low * (high / low) ** Number(input.value) : Number(input.value);
      if (log) value = Number(value.toPrecision(2));
      value = Math.min(high, Math.max(low, whole ? Math.round(value) : Number(value.toPrecision(4))));
      return String(value);
    };
    return input;
  }
}

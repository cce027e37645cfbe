// Errors: what, where, and the code around it.

import { element } from "./dom.js";

/** Show an error in a place, or nothing. */
export function showMistake(place, error, heading) {
  const text = JSON.stringify([error, heading]);
  if (place.dataset.text === text) return;
  place.dataset.text = text;
  place.hidden = !error;
  if (!error) return place.replaceChildren();
  const lines = (error.excerpt ?? []).map(([number, code]) =>
    element("span", number === error.line ? { class: "here" } : {}, `${String(number).padStart(4)}  ${code}`));
  return place.replaceChildren(
    element("p", { class: "place" }, error.file ? `${error.file}:${error.line}` : heading),
    element("p", { class: "message" }, error.message),
    ...(lines.length ? [element("pre", {}, ...lines)] : []),
    ...(error.traceback
      ? [element("details", {}, element("summary", {}, "Traceback"), element("pre", {}, error.traceback))]
      : []),
  );
}

// The keyboard, wherever the focus is, except where keys have a meaning of their own.

const OWN_KEYS = "input[type=text], select, textarea, dialog";

/** Call `actions[name]()` for a key, as `keyName` writes it: "Space", "Shift+ArrowLeft", "c". */
export function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(OWN_KEYS)) return;
    const name = keyName(event);
    const onControl = event.target.closest("button, summary, a, input");
    if (onControl && (name === "Space" || name === "Enter") && event.target.id !== "scrub") return;
    const isParameter = event.target.closest("#form") && /Arrow|Home|End|Page/.test(name);
    if (!(name in actions) || isParameter) return;
    event.preventDefault();
    actions[name]();
  });
}

function keyName(event) {
  if (event.key === " ") return "Space";
  if (event.key.startsWith("Arrow")) return event.shiftKey ? `Shift+${event.key}` : event.key;
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

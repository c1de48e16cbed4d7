// Entries in the app, called from js_on_load of gr.HTML.
import { Page } from "./page.js";

/** The token reader of the Reader tab. */
export function start(element, server) {
  return new Page(element.querySelector("#spo-root"), server).openRun();
}

/** Tells Python whenever a part of the address changes that Python shows, and makes `spo.go`. */
export function route(trigger) {
  let told = "";
  const tell = () => {
    const fields = new URLSearchParams(location.hash.slice(1));
    if (fields.get("tab") === "read") {
      for (const name of ["prompt", "completion", "token", "colour", "mode"]) fields.delete(name);
    }
    if (String(fields) === told) return;
    told = String(fields);
    const dark = document.body.classList.contains("dark");
    const client = { hash: location.hash.slice(1), width: innerWidth, dark };
    trigger("submit", { client: JSON.stringify(client) });
  };
  addEventListener("hashchange", tell);
  globalThis.spo = { go };
}

/** Changes fields of the address; an empty one is left out. A text is a whole new address. */
function go(changes) {
  if (typeof changes === "string") return void (location.hash = changes);
  const fields = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(changes)) {
    if ((value ?? "") === "") fields.delete(name);
    else fields.set(name, Array.isArray(value) ? value.join(",") : value);
  }
  location.hash = String(fields);
}

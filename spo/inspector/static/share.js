// Share: link, self-contained HTML file, SVG of the current completion.

import { ask } from "./data.js";
import { h } from "./dom.js";

export function shareMenu(page) {
  const item = (label, action) => {
    const onclick = async () => {
      menu.open = false;
      await page.attempt(action);
    };
    return h("button", { onclick }, label);
  };
  const link = item("Copy link to this view", () => navigator.clipboard.writeText(location.href));
  const onServer = [
    item("Prompt group as HTML file", () => exportGroup(page, null)),
    item("Ticked completions as HTML file", () => exportTicked(page)),
    item("Completion as SVG", () => exportPicture(page)),
  ];
  const items = h("div", {}, link, page.exported ? [] : onServer);
  const menu = h("details", { class: "menu" }, h("summary", {}, "Share"), items);
  return menu;
}

function exportTicked(page) {
  const rows = page.reader.ticked;
  if (!rows.length) throw new Error("Tick the completions to export first.");
  return exportGroup(page, rows);
}

async function exportGroup(page, rows) {
  const query = { ...page.place, group: page.state.prompt, rows, address: location.hash.slice(1) };
  const { html } = await ask(page.server, "export_group", query);
  download(new Blob([html], { type: "text/html" }), `${name(page)}.html`);
}

/** The current completion as it is coloured now. */
async function exportPicture(page) {
  const { prompt, completion, colour, mode } = page.state;
  const settings = page.changed ? { ...page.changes, mode } : null;
  const query = { ...page.place, group: prompt, completion, colour, settings };
  const { svg } = await ask(page.server, "draw_completion", query);
  download(new Blob([svg], { type: "image/svg+xml" }), `${name(page)}.svg`);
}

const name = ({ state }) => `spo-${state.run}-step${state.step}-prompt${state.prompt + 1}`;

/** Offers a blob as a file. */
function download(blob, fileName) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = fileName.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Share: link, self-contained HTML file, SVG and PNG of the current completion.

import { ask } from "./data.js";
import { h } from "./dom.js";
import { completionPicture, download, pngBlob, svgBlob } from "./picture.js";
import { COLOURS } from "./scale.js";

export function shareMenu(page) {
  const item = (label, action) =>
    h(
      "button",
      {
        onclick: async () => {
          menu.open = false;
          await page.attempt(action);
        },
      },
      label,
    );
  const name = () => `spo-${page.state.run}-step${page.state.step}-prompt${page.state.prompt + 1}`;
  const menu = h(
    "details",
    { class: "menu" },
    h("summary", {}, "Share"),
    h(
      "div",
      {},
      item("Copy link to this view", () => navigator.clipboard.writeText(location.href)),
      page.exported
        ? null
        : item("Prompt group as HTML file", () => exportGroup(page, null, name())),
      page.exported
        ? null
        : item("Ticked completions as HTML file", () => exportTicked(page, name())),
      item("Completion as SVG", () => download(svgBlob(currentPicture(page)), `${name()}.svg`)),
      item("Completion as PNG", async () =>
        download(await pngBlob(currentPicture(page)), `${name()}.png`),
      ),
    ),
  );
  return menu;
}

function exportTicked(page, name) {
  const rows = page.reader.ticked;
  if (!rows.length) throw new Error("Tick the completions to export first.");
  return exportGroup(page, rows, name);
}

async function exportGroup(page, rows, name) {
  const address = location.hash.slice(1);
  const query = { ...page.place, group: page.state.prompt, rows, address };
  const { html } = await ask(page.server, "export_group", query);
  download(new Blob([html], { type: "text/html" }), `${name}.html`);
}

/** The current completion as it is coloured now. */
function currentPicture(page) {
  const completion = page.group.completions[page.state.completion];
  const credit = page.creditOf(completion);
  const { label, of } = COLOURS[page.state.colour];
  const { run, step, prompt } = page.state;
  const title = `${run} · step ${step} · prompt ${prompt + 1} · completion ${completion.completion + 1}`;
  return completionPicture(title, label, completion, credit, of(completion, credit), page.scale);
}

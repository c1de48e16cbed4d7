// Share: link, self-contained HTML file, SVG of the current completion.
import { ask } from "./data.js";

const ACTIONS = {
  link: () => navigator.clipboard.writeText(location.href),
  group: (page) => exportGroup(page, null),
  ticked: (page) => exportGroup(page, page.reader.ticked),
  picture: exportPicture,
};

export function connectMenu(menu, page) {
  for (const button of menu.querySelectorAll("[data-share]")) {
    const { share } = button.dataset;
    button.hidden = page.exported && share !== "link";
    button.onclick = () => {
      menu.open = false;
      page.attempt(() => ACTIONS[share](page));
    };
  }
}

async function exportGroup(page, rows) {
  if (rows && !rows.length) throw new Error("Tick the completions to export first.");
  const query = { ...page.place, group: page.state.prompt, rows, address: location.hash.slice(1) };
  download(page, (await ask(page.server, "export_group", query)).html, "text/html", "html");
}

/** The current completion as it is coloured now. */
async function exportPicture(page) {
  const { prompt, completion, colour, mode } = page.state;
  const settings = page.changed ? { ...page.changes, mode } : null;
  const query = { ...page.place, group: prompt, completion, colour, settings };
  download(page, (await ask(page.server, "draw_completion", query)).svg, "image/svg+xml", "svg");
}

function download({ state }, text, type, ending) {
  const name = `spo-${state.run}-step${state.step}-prompt${state.prompt + 1}`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${name.replace(/[^\w.-]+/g, "_")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Entry of an exported file: the server's answers lie in the page, so it works from disk.

import { Page } from "./page.js";

const data = JSON.parse(document.getElementById("spo-data").textContent);
const reply = (result) => async () => JSON.stringify({ ok: true, ...result });

const server = {
  list_runs: reply({ runs: [data.place.run] }),
  list_steps: reply({ steps: [data.place.step], skipped: {} }),
  get_step: reply(data.step),
  get_credit_inputs: reply(data.inputs),
  get_group: reply(data.group),
};

if (matchMedia("(prefers-color-scheme: dark)").matches) document.body.classList.add("dark");
if (location.hash === "" && data.address) history.replaceState(null, "", `#${data.address}`);
new Page(document.getElementById("spo-root"), server, { exported: true }).open();
